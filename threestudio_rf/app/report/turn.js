// The object of this page, turned with the mouse: the GLB that export/files.py writes, in plain WebGL 2. Nothing is
// fetched. `#turn=90` in the address holds it at that azimuth.
const canvas = document.getElementById("object");
const file = Uint8Array.from(atob(document.getElementById("glb").textContent), (c) => c.charCodeAt(0));
const jsonLength = new DataView(file.buffer).getUint32(12, true);
const tree = JSON.parse(new TextDecoder().decode(file.subarray(20, 20 + jsonLength)));
const viewOf = (index) => {
  const view = tree.bufferViews[index];
  return file.slice(28 + jsonLength + (view.byteOffset || 0)).subarray(0, view.byteLength);
};
const KINDS = { 5121: Uint8Array, 5123: Uint16Array, 5125: Uint32Array, 5126: Float32Array };
const valuesOf = (index) => {
  const accessor = tree.accessors[index];
  return new KINDS[accessor.componentType](viewOf(accessor.bufferView).slice(accessor.byteOffset || 0).buffer);
};

const VERTEX = `#version 300 es
in vec3 position; in vec3 normal; in vec2 uv; in vec4 colour;
uniform mat3 turn; uniform vec3 middle; uniform float size, distance, aspect;
out vec3 facing; out vec2 place; out vec3 linear;
void main() {
  vec3 seen = turn * (position - middle) / size;
  float depth = distance - seen.z;
  gl_Position = vec4(2.4 * seen.x / aspect, 2.4 * seen.y, (10.1 * depth - 2.0) / 9.9, depth);
  facing = turn * normal; place = uv; linear = colour.rgb;
}`;
const FRAGMENT = `#version 300 es
precision highp float;
in vec3 facing; in vec2 place; in vec3 linear;
uniform sampler2D picture; uniform bool textured; uniform float light;
out vec4 shown;
void main() {
  vec3 srgb = mix(12.92 * linear, 1.055 * pow(linear, vec3(1.0 / 2.4)) - 0.055, step(0.0031308, linear));
  if (textured) srgb = texture(picture, place).rgb;
  float lit = 0.3 + 0.7 * max(dot(normalize(facing), normalize(vec3(-0.3, 0.4, 1.0))), 0.0);
  shown = vec4(srgb * mix(1.0, lit, light), 1.0);
}`;

async function main() {
  const gl = canvas.getContext("webgl2", { antialias: true });
  if (!gl) throw new Error("this browser has no WebGL 2");
  const program = gl.createProgram();
  for (const [kind, source] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    gl.attachShader(program, shader);
  }
  gl.linkProgram(program);
  if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(program));
  gl.useProgram(program);
  const part = tree.meshes[0].primitives[0];
  const attribute = (name, key, width) => {
    if (part.attributes[key] === undefined) return;
    const values = valuesOf(part.attributes[key]);
    const at = gl.getAttribLocation(program, name);
    gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
    gl.bufferData(gl.ARRAY_BUFFER, values, gl.STATIC_DRAW);
    if (at < 0) return;
    gl.enableVertexAttribArray(at);
    gl.vertexAttribPointer(at, width, values instanceof Float32Array ? gl.FLOAT : gl.UNSIGNED_SHORT, true, 0, 0);
  };
  attribute("position", "POSITION", 3);
  attribute("normal", "NORMAL", 3);
  attribute("uv", "TEXCOORD_0", 2);
  attribute("colour", "COLOR_0", 4);
  const indices = valuesOf(part.indices);
  gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, gl.createBuffer());
  gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, indices, gl.STATIC_DRAW);
  const uniform = (name) => gl.getUniformLocation(program, name);
  const textured = part.attributes.TEXCOORD_0 !== undefined;
  gl.uniform1i(uniform("textured"), textured ? 1 : 0);
  gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
  if (textured) {
    const image = tree.images[0];
    const blob = new Blob([viewOf(image.bufferView)], { type: image.mimeType });
    const picture = await createImageBitmap(blob, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, picture);
    gl.generateMipmap(gl.TEXTURE_2D);
  } else {
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, 1, 1, 0, gl.RGBA, gl.UNSIGNED_BYTE, new Uint8Array(4));
  }
  const { min, max } = tree.accessors[part.attributes.POSITION];
  gl.uniform3fv(uniform("middle"), min.map((low, i) => (low + max[i]) / 2));
  gl.uniform1f(uniform("size"), Math.max(...min.map((low, i) => max[i] - low)));
  gl.enable(gl.DEPTH_TEST);

  const held = new URLSearchParams(location.hash.slice(1)).get("turn");
  let azimuth = held === null ? 0 : Number(held), elevation = 25, distance = 2.3, spins = held === null, before;
  const light = document.getElementById("light");
  function draw(now) {
    if (spins && before !== undefined) azimuth += (now - before) * 0.03;
    before = now;
    const wide = canvas.clientWidth * devicePixelRatio, high = canvas.clientHeight * devicePixelRatio;
    if (canvas.width !== wide || canvas.height !== high) [canvas.width, canvas.height] = [wide, high];
    gl.viewport(0, 0, canvas.width, canvas.height);
    gl.clearColor(0.7, 0.7, 0.7, 1);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    const [a, e] = [azimuth, elevation].map((degrees) => degrees * Math.PI / 180);
    const [sa, ca, se, ce] = [Math.sin(a), Math.cos(a), Math.sin(e), Math.cos(e)];
    gl.uniformMatrix3fv(uniform("turn"), false, [ca, -sa * se, sa * ce, 0, ce, se, -sa, -ca * se, ca * ce]);
    gl.uniform1f(uniform("distance"), distance);
    gl.uniform1f(uniform("aspect"), canvas.width / canvas.height);
    gl.uniform1f(uniform("light"), light.checked ? 1 : 0);
    gl.drawElements(gl.TRIANGLES, indices.length, gl.UNSIGNED_INT, 0);
    canvas.dataset.triangles = indices.length / 3;
    canvas.dataset.azimuth = azimuth.toFixed(1);
    if (spins) requestAnimationFrame(draw);
  }
  const again = () => { if (!spins) requestAnimationFrame(draw); };
  canvas.addEventListener("pointerdown", (event) => { spins = false; canvas.setPointerCapture(event.pointerId); });
  canvas.addEventListener("pointermove", (event) => {
    if (!event.buttons) return;
    azimuth -= event.movementX * 0.5;
    elevation = Math.max(-89, Math.min(89, elevation + event.movementY * 0.5));
    again();
  });
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    distance = Math.max(1.4, Math.min(8, distance * Math.exp(event.deltaY * 0.001)));
    again();
  }, { passive: false });
  light.addEventListener("change", again);
  addEventListener("resize", again);
  requestAnimationFrame(draw);
}
main().catch((error) => canvas.replaceWith(`The object cannot be shown here: ${error.message}`));
