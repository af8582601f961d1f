"""The page's modules as one script: a page that is opened from a folder cannot import modules from beside it."""

from __future__ import annotations

import re
from collections.abc import Mapping

IMPORT = re.compile(r'^import \{([^}]*)\} from "\./([a-z-]+)\.js";\n', re.MULTILINE)
EXPORT = re.compile(r"^export (?=(?:const|function) (\w+))", re.MULTILINE)


def bundle(modules: Mapping[str, str]) -> str:
    """The texts of modules by name, those that are imported first, as one strict script that leaves no name behind.

    Imports and exports are taken out, so the modules share one scope: no two may define the same name at their top.

    >>> one = "export const one = 1;\\n"
    >>> print(bundle({"one": one, "two": 'import { one } from "./one.js";\\nalert(one);\\n'}))
    "use strict";
    (() => {
    const one = 1;
    <BLANKLINE>
    alert(one);
    })();
    <BLANKLINE>
    """
    bodies = [EXPORT.sub("", IMPORT.sub("", text)) for text in modules.values()]
    return '"use strict";\n(() => {\n' + "\n".join(bodies) + "})();\n"
