//! What was measured, as a table and as a plot.

use std::fmt::Write;
use std::path::Path;

const BEGIN: &str = "<!-- compare: begin -->";
const END: &str = "<!-- compare: end -->";

/// Median and range of some runs.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    pub median: f64,
    pub least: f64,
    pub most: f64,
}

impl Measured {
    pub fn of(mut runs: Vec<f64>) -> Measured {
        runs.sort_by(f64::total_cmp);
        let at = |index: usize| runs.get(index).copied().unwrap_or(f64::NAN);
        let middle = runs.len() / 2;
        Measured {
            median: match runs.len() % 2 {
                1 => at(middle),
                _ => (at(middle.saturating_sub(1)) + at(middle)) / 2.0,
            },
            least: at(0),
            most: at(runs.len().saturating_sub(1)),
        }
    }
}

/// One test of both tools.
pub struct Comparison {
    pub model: String,
    pub test: String,
    pub neighbours: usize,
    pub unit: &'static str,
    pub ours: Measured,
    pub theirs: Measured,
}

impl Comparison {
    fn label(&self) -> String {
        match self.neighbours {
            0 => format!("{} {}", self.model, self.test),
            count => format!("{} {}, {count} neighbours", self.model, self.test),
        }
    }

    fn ratio(&self) -> f64 {
        self.ours.median / self.theirs.median
    }
}

/// A Markdown table.
pub fn table(comparisons: &[Comparison]) -> String {
    let mut out = String::from(
        "| model | test | busy neighbours | unit | ondine: median (range) | llama.cpp: median (range) | ratio |\n|---|---|---|---|---|---|---|\n",
    );
    for row in comparisons {
        let cell =
            |x: Measured| format!("{} ({}–{})", short(x.median), short(x.least), short(x.most));
        let _ = writeln!(
            out,
            "| {} | {} | {} | {} | {} | {} | {:.2} |",
            row.model,
            row.test,
            row.neighbours,
            row.unit,
            cell(row.ours),
            cell(row.theirs),
            row.ratio()
        );
    }
    out
}

/// Puts the table between the marks of `page` and the plot beside it.
pub fn write(page: &Path, comparisons: &[Comparison], command: &str) -> Result<(), String> {
    let fail = |error: std::io::Error| format!("{}: {error}", page.display());
    let text = std::fs::read_to_string(page).map_err(fail)?;
    let (before, rest) = text
        .split_once(BEGIN)
        .ok_or_else(|| format!("{} has no line {BEGIN}", page.display()))?;
    let (_, after) = rest
        .split_once(END)
        .ok_or_else(|| format!("{} has no line {END}", page.display()))?;
    let plot_file = page.with_extension("svg");
    let name = plot_file
        .file_name()
        .map_or(String::new(), |name| name.to_string_lossy().into_owned());
    let table = table(comparisons);
    let text = format!(
        "{before}{BEGIN}\n`{command}`\n\n{table}\n![tokens per second beside llama.cpp]({name})\n{END}{after}"
    );
    std::fs::write(page, text).map_err(fail)?;
    std::fs::write(&plot_file, plot(comparisons)).map_err(fail)
}

/// Bars of the rates, both tools under each other, with whiskers for the range; each test has its own scale.
fn plot(comparisons: &[Comparison]) -> String {
    let rows: Vec<&Comparison> = comparisons
        .iter()
        .filter(|row| row.unit == "tokens/s")
        .collect();
    let (left, width, height) = (290.0, 470.0, 44.0);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"860\" height=\"{0}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"860\" height=\"{0}\" fill=\"#ffffff\"/>\n\
         <rect x=\"{left}\" y=\"8\" width=\"12\" height=\"12\" fill=\"#0b7285\"/><text x=\"308\" y=\"18\" fill=\"#222\">ondine</text>\n\
         <rect x=\"380\" y=\"8\" width=\"12\" height=\"12\" fill=\"#adb5bd\"/><text x=\"398\" y=\"18\" fill=\"#222\">llama.cpp (tokens/s, median and range)</text>\n",
        30.0 + height * rows.len() as f64
    );
    for (index, row) in rows.iter().enumerate() {
        let top = 30.0 + height * index as f64;
        let most = row.ours.most.max(row.theirs.most);
        let _ = writeln!(
            out,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\" fill=\"#222\">{}</text>",
            left - 8.0,
            top + 22.0,
            row.label()
        );
        for (offset, measured, colour) in
            [(2.0, row.ours, "#0b7285"), (19.0, row.theirs, "#adb5bd")]
        {
            let x = |value: f64| left + width * value / most;
            let y = top + offset;
            let _ = writeln!(
                out,
                "<rect x=\"{left}\" y=\"{y}\" width=\"{:.1}\" height=\"14\" fill=\"{colour}\"/>\
                 <path d=\"M{:.1} {m}H{:.1}\" stroke=\"#222\"/>\
                 <text x=\"{:.1}\" y=\"{}\" fill=\"#222\">{}</text>",
                x(measured.median) - left,
                x(measured.least),
                x(measured.most),
                x(measured.most) + 6.0,
                y + 11.0,
                short(measured.median),
                m = y + 7.0,
            );
        }
    }
    out.push_str("</svg>\n");
    out
}

fn short(x: f64) -> String {
    match x {
        x if x < 10.0 => format!("{x:.2}"),
        x if x < 100.0 => format!("{x:.1}"),
        x => format!("{x:.0}"),
    }
}
