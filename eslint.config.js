// What the report's JavaScript keeps to: `make lint-js`.
import js from "@eslint/js";

const readonly = (...names) => Object.fromEntries(names.map((name) => [name, "readonly"]));

const rules = {
  ...js.configs.recommended.rules,
  "array-callback-return": "error",
  "arrow-body-style": "error",
  "consistent-return": "error",
  "default-param-last": "error",
  "dot-notation": "error",
  eqeqeq: "error",
  "func-style": ["error", "declaration", { allowArrowFunctions: true }],
  "max-depth": ["error", 3],
  "max-params": ["error", 6],
  "no-alert": "error",
  "no-console": "error",
  "no-else-return": "error",
  "no-eval": "error",
  "no-implicit-coercion": "error",
  "no-implicit-globals": "error",
  "no-implied-eval": "error",
  "no-loop-func": "error",
  "no-new-func": "error",
  "no-param-reassign": "error",
  "no-return-assign": "error",
  "no-script-url": "error",
  "no-self-compare": "error",
  "no-sequences": "error",
  "no-shadow": "error",
  "no-throw-literal": "error",
  "no-unneeded-ternary": "error",
  "no-unused-expressions": "error",
  "no-use-before-define": ["error", { functions: false, variables: false }],
  "no-useless-concat": "error",
  "no-useless-return": "error",
  "no-var": "error",
  "object-shorthand": "error",
  "prefer-arrow-callback": "error",
  "prefer-const": "error",
  "prefer-template": "error",
  "require-await": "error",
  // The page shows the texts of strangers: they become text, never markup (dom.js makes the elements).
  "no-restricted-properties": [
    "error",
    ...["innerHTML", "outerHTML", "insertAdjacentHTML", "srcdoc"].map((property) => ({ property })),
    { object: "document", property: "write" },
  ],
};

export default [
  { ignores: ["**/.venv*/", "build/", "dist/", "**/site-packages/", "docs/"] },
  { linterOptions: { reportUnusedDisableDirectives: "error" } },
  {
    files: ["headprobe/pictures/report/assets/*.js"],
    languageOptions: { globals: readonly("document", "innerHeight", "innerWidth", "matchMedia", "window") },
    rules,
  },
  { files: ["tests/**/*.js", "eslint.config.js"], rules },
];
