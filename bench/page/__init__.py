"""`flashvl-bench report`: result files as one self-contained HTML page.

cli.py       the options
html.py      the page: its sections and tables
charts.py    its drawings; style.py: its style and script
data.py      what the files and docs/ say; markdown.py: the ladders as HTML
speed.py     docs/speed.md, and the picture of the README
"""
