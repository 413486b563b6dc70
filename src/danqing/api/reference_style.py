"""How the API reference looks: light and dark, at a desk and on a phone. CSS only."""

STYLE = """
:root { color-scheme: light dark; --ink: #23211e; --soft: #6b665e; --line: #e4dfd6; --paper: #fffdf9; --tint: #f5f1e8;
  --red: #b3402a; --green: #3d7a4b; --blue: #2f6296; }
@media (prefers-color-scheme: dark) { :root { --ink: #e9e4da; --soft: #a39c90; --line: #3a3630; --paper: #1b1916; --tint: #27241f;
  --red: #e58a76; --green: #8fc79b; --blue: #8ab6e0; } }
* { box-sizing: border-box; }
html { scroll-padding-top: 1rem; }
body { margin: 0; display: grid; grid-template-columns: 17rem minmax(0, 1fr); background: var(--paper); color: var(--ink);
  font: 16px/1.6 system-ui, "PingFang SC", "Noto Sans CJK SC", "Microsoft YaHei", sans-serif; }
a { color: var(--red); text-decoration: none; } a:hover { text-decoration: underline; }
nav { position: sticky; top: 0; height: 100vh; overflow-y: auto; padding: 1.5rem 1rem 3rem 1.5rem; border-right: 1px solid var(--line);
  font-size: .875rem; }
nav .name { margin: 0 0 1rem; font-size: 1.05rem; font-weight: 600; } nav a { color: var(--ink); }
nav ol, nav ul { list-style: none; margin: 0; padding: 0; } nav ol > li { margin-bottom: .6rem; font-weight: 600; }
nav ul { margin-top: .1rem; font-weight: 400; } nav ul a { display: block; padding: .05rem 0 .05rem .75rem; color: var(--soft); }
nav ul a:hover { color: var(--red); }
main { max-width: 60rem; padding: 2.5rem 3rem 6rem; }
h1 { margin: 0 0 .5rem; font-size: 2rem; line-height: 1.2; }
h2 { margin: 0 0 .5rem; padding-top: 3.5rem; font-size: 1.6rem; line-height: 1.25; }
h3 { margin: 2.5rem 0 .25rem; font-size: 1.15rem; } h4 { margin: 1.25rem 0 .25rem; font-size: .875rem; color: var(--soft); font-weight: 600; }
p { margin: .5rem 0; } .lead { font-size: 1.1rem; color: var(--soft); }
section + section { border-top: 1px solid var(--line); margin-top: 3.5rem; } section + section h2 { padding-top: 2.5rem; }
code, pre { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: .875em; }
p code, td code, summary code { background: var(--tint); padding: .1em .3em; border-radius: .25em; overflow-wrap: anywhere; }
figure { margin: 1rem 0; border: 1px solid var(--line); border-radius: .5rem; overflow: hidden; }
figcaption { padding: .35rem 1rem; font-size: .8rem; color: var(--soft); border-bottom: 1px solid var(--line); }
pre { margin: 0; padding: .9rem 1rem; overflow-x: auto; background: var(--tint); line-height: 1.5; font-size: .82rem; }
pre code { font-size: inherit; }
.route { margin: .25rem 0 .5rem; } .route code { font-size: .95rem; }
.route b { display: inline-block; min-width: 3.6rem; padding: .05rem .5rem; border-radius: .25rem; text-align: center; font-size: .75rem; color: var(--paper);
  background: var(--soft); } .route .post { background: var(--red); } .route .get { background: var(--green); }
.route .put, .route .patch { background: var(--blue); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .875rem; line-height: 1.5; }
th { text-align: left; color: var(--soft); font-weight: 600; } th, td { padding: .4rem .9rem .4rem 0; vertical-align: top; border-bottom: 1px solid var(--line); }
.fields td:first-child { width: 30%; padding-left: calc(var(--depth) * 1.1rem); } .fields td:nth-child(2) { width: 18%; }
.fields td:first-child code { background: none; padding: 0; font-weight: 600; overflow-wrap: break-word; } .above { color: var(--soft); font-weight: 400; }
.kind { color: var(--soft); overflow-wrap: anywhere; } .needed { color: var(--red); font-size: .75rem; white-space: nowrap; }
.faults td:first-child { width: 3.5rem; } .faults td code { overflow-wrap: normal; white-space: nowrap; }
.type { display: block; color: var(--soft); font-size: .75rem; } .faults td:last-child { white-space: nowrap; color: var(--soft); }
details { margin: .75rem 0; } summary { cursor: pointer; color: var(--soft); font-size: .875rem; font-weight: 600; }
@media (max-width: 60rem) {
  body { display: block; }
  nav { position: static; height: auto; padding: 1rem 1.1rem; border-right: 0; border-bottom: 1px solid var(--line); }
  nav ol { columns: 2; column-gap: 1rem; } nav ol > li { margin-bottom: .35rem; break-inside: avoid; font-weight: 400; } nav ul { display: none; }
  nav a { display: inline-block; padding: .15rem 0; }
  main { padding: 1.5rem 1.1rem 4rem; } h1 { font-size: 1.6rem; } h2 { font-size: 1.35rem; }
  .fields, .fields tbody { display: block; } .fields tr { display: block; padding: .5rem 0; border-bottom: 1px solid var(--line); margin-left: calc(var(--depth) * .8rem); }
  .fields td { display: block; width: auto !important; padding: 0 !important; border: 0; }
  .faults td:last-child { white-space: normal; }
}
@media print { nav { display: none; } body { display: block; } details > * { display: block; } }
"""
