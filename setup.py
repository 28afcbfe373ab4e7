"""The package's folders: those of the code, and the settings of configs/ as threestudio_rf.configs."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["threestudio_rf*"]), "threestudio_rf.configs"],
    package_dir={"threestudio_rf.configs": "configs"},
    package_data={
        "threestudio_rf": ["weights/**/*", "weights/*", "app/report/*.js", "py.typed"],
        "threestudio_rf.configs": ["**/*.yaml"],
    },
)
