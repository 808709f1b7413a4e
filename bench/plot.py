"""A picture of the results: how many times a plain column's work takes.

gnuplot draws it, from a script that is made here.
"""
import os
import subprocess

BARS = ("scan_1_bulk", "scan_1_updated", "scan_1_rows", "scan_1_aes", "scan_4_bulk",
        "parallel_scan", "ilike_all", "order_school", "join", "copy_to")


def quoted(text):
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("@", "\\\\@") + '"'


def svg(results, path, title, work):
    rows = [row for name in BARS for row in results
            if row["name"] == name and row["ratio"] is not None]
    if not rows:
        return False
    lines = []
    for row in rows:
        bound = "" if row["target"] is None else row["target"].split()[1].rstrip("x")
        lines.append(f"{quoted(row['section'] + ': ' + row['what'])} {row['ratio']} {bound or 'NaN'}")
    values = os.path.join(work, "plot.data")
    with open(values, "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
    script = f"""
set terminal svg size 900,{120 + 34 * len(rows)} font "sans-serif,13" background "#ffffff"
set output {quoted(path)}
set title {quoted(title)} noenhanced
set yrange [{len(rows)}-0.4:-0.6]
set xrange [0:*]
set xlabel "times what plain columns take; the mark is the target"
set ytics scale 0 noenhanced
set grid xtics
unset key
set style fill solid 0.85 noborder
set boxwidth 0.7
plot {quoted(values)} using ($2/2):0:($2/2):(0.35):ytic(1) with boxxyerror linecolor rgb "#2f6f8f", \\
     '' using ($2+0.05):0:(sprintf("%.2f", $2)) with labels left font ",12", \\
     '' using 3:0:3:3:($0-0.42):($0+0.42) with xyerrorbars pointtype 0 linewidth 3 linecolor rgb "#c0392b"
"""
    subprocess.run(["gnuplot"], input=script, text=True, check=True)
    return True
