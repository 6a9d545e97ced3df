// Read by require.js, which comes next: the fonts of the widgets lie beside this file.
var require = {
  paths: {
    "@jupyter-widgets/html-manager/dist": document.currentScript.src.replace(
      /\/[^/]*$/,
      "",
    ),
  },
};
