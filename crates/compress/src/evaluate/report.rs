//! Results as one page of HTML that needs nothing else: figures with their intervals, plots, the worst items side by side.

use std::fmt::Write;

use super::statistics::{Interval, interval};
use super::subject::{ItemResult, TaskResult};

/// Items that are shown side by side of each task.
const SHOWN: usize = 12;
/// Confidence intervals of 95 %.
const TAIL: f64 = 0.025;
/// Seed of the bootstrap.
const SEED: u64 = 1;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#222}\
h1{font-size:1.6rem}h2{margin-top:2.5rem;border-bottom:1px solid #ccc}table{border-collapse:collapse;width:100%}\
td,th{text-align:left;vertical-align:top;padding:.3rem .6rem;border-bottom:1px solid #e4e4e4}td.n{text-align:right;\
font-variant-numeric:tabular-nums}.bad{background:#fdecea}.good{background:#eaf6ec}pre{white-space:pre-wrap;margin:0;\
font:13px/1.4 ui-monospace,monospace}small{color:#666}svg text{font:11px system-ui,sans-serif;fill:#444}";

/// The page: `model`'s results, and those of the reference it is measured against, if any.
pub fn html(
    suite: &str,
    model: &str,
    results: &[TaskResult],
    reference: Option<(&str, &[TaskResult])>,
) -> String {
    let mut out = String::new();
    let _ = write!(
        out,
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width\"><title>{0}: {1}</title>\
<style>{STYLE}</style><h1>{1}</h1><p>Suite {0}",
        escape(suite),
        escape(model)
    );
    if let Some((name, _)) = reference {
        let _ = write!(out, ", against {}", escape(name));
    }
    out.push_str(
        ".</p><table><tr><th>task<th>figure<th>items<th>value<th>95 % interval<th>reference<th>difference",
    );
    for (index, task) in results.iter().enumerate() {
        let before = reference.and_then(|(_, results)| results.get(index));
        rows(&mut out, task, before);
    }
    out.push_str("</table>");
    for (index, task) in results.iter().enumerate() {
        let before = reference.and_then(|(_, results)| results.get(index));
        section(&mut out, task, before);
    }
    out
}

/// The figures of a task.
fn rows(out: &mut String, task: &TaskResult, before: Option<&TaskResult>) {
    let scores: Vec<f64> = task.items.iter().map(|item| item.score).collect();
    let found = interval(&scores, TAIL, SEED);
    let (name, show): (&str, fn(f64) -> f64) = match task.is_loss {
        true => ("perplexity", f64::exp),
        false => ("right", |share| 100.0 * share),
    };
    let unit = if task.is_loss { "" } else { " %" };
    let (mut reference, mut difference) = (String::new(), String::new());
    let mut class = "";
    if let Some(before) = before {
        let scores: Vec<f64> = before.items.iter().map(|item| item.score).collect();
        let mean = interval(&scores, TAIL, SEED).mean;
        let pairs = task.items.iter().zip(&before.items);
        let changes: Vec<f64> = pairs
            .map(|(now, before)| now.score - before.score)
            .collect();
        let change = interval(&changes, TAIL, SEED);
        reference = format!("{:.3}{unit}", show(mean));
        let scale = if task.is_loss { 1.0 } else { 100.0 };
        difference = format!(
            "{:+.4} ({:+.4} to {:+.4}){}",
            scale * change.mean,
            scale * change.low,
            scale * change.high,
            if task.is_loss { " nats" } else { " points" }
        );
        let (better, worse) = match task.is_loss {
            true => (change.high < 0.0, change.low > 0.0),
            false => (change.low > 0.0, change.high < 0.0),
        };
        class = match (better, worse) {
            (true, _) => " class=good",
            (_, true) => " class=bad",
            _ => "",
        };
    }
    let _ = write!(
        out,
        "<tr{class}><td>{}<td>{name}<td class=n>{}<td class=n>{:.3}{unit}<td>{:.3} to {:.3}<td class=n>{reference}<td>{difference}",
        escape(&task.name),
        task.items.len(),
        show(found.mean),
        show(found.low),
        show(found.high),
    );
    for (name, scale, unit, of) in figures() {
        let values: Vec<f64> = task.items.iter().filter_map(of).collect();
        if !values.is_empty() {
            let Interval { mean, low, high } = interval(&values, TAIL, SEED);
            let _ = write!(
                out,
                "<tr><td><td>{name}<td class=n>{}<td class=n>{:.4}{unit}<td>{:.4} to {:.4}<td><td>",
                values.len(),
                scale * mean,
                scale * low,
                scale * high
            );
        }
    }
}

type Figure = (
    &'static str,
    f64,
    &'static str,
    fn(&ItemResult) -> Option<f64>,
);

fn figures() -> [Figure; 2] {
    [
        ("KL from the reference", 1.0, " nats", |item| {
            item.divergence
        }),
        ("same likeliest token", 100.0, " %", |item| item.same_best),
    ]
}

/// A task's plot and its worst items.
fn section(out: &mut String, task: &TaskResult, before: Option<&TaskResult>) {
    let _ = write!(out, "<h2>{}</h2>", escape(&task.name));
    let worse = |index: usize| {
        let item = &task.items[index];
        let before = before.and_then(|before| before.items.get(index));
        let change = item.score - before.map_or(0.0, |before| before.score);
        match (task.is_loss, item.divergence) {
            (true, Some(divergence)) => divergence,
            (true, None) => change,
            (false, _) => -change,
        }
    };
    let mut order: Vec<usize> = (0..task.items.len()).collect();
    if task.is_loss {
        let values: Vec<f64> = order.iter().map(|index| worse(*index)).collect();
        let label = match task.items.iter().any(|item| item.divergence.is_some()) {
            true => "KL from the reference, window by window, nats",
            false if before.is_some() => "rise of the loss, window by window, nats per token",
            false => "loss, window by window, nats per token",
        };
        bars(out, &values, label);
    }
    order.sort_by(|a, b| worse(*b).total_cmp(&worse(*a)).then(a.cmp(b)));
    order.retain(|index| match (task.is_loss, before) {
        (true, _) => true,
        (false, Some(_)) => worse(*index) > 0.0,
        (false, None) => task.items[*index].score < 1.0,
    });
    order.truncate(SHOWN);
    if order.is_empty() {
        out.push_str("<p>Nothing became worse.</p>");
        return;
    }
    out.push_str("<table><tr><th>item<th>asked<th>expected<th>answer");
    if before.is_some() {
        out.push_str("<th>the reference's answer");
    }
    for index in order {
        let item = &task.items[index];
        let _ = write!(
            out,
            "<tr><td class=n>{index}<br><small>{:+.4}</small><td><pre>{}</pre><td><pre>{}</pre><td><pre>{}</pre>",
            worse(index),
            escape(&item.question),
            escape(&item.expected),
            escape(&item.answer)
        );
        if let Some(before) = before.and_then(|before| before.items.get(index)) {
            let _ = write!(out, "<td><pre>{}</pre>", escape(&before.answer));
        }
    }
    out.push_str("</table>");
}

/// A bar for each value.
fn bars(out: &mut String, values: &[f64], label: &str) {
    const WIDTH: f64 = 900.0;
    const HEIGHT: f64 = 140.0;
    let most = values
        .iter()
        .fold(0.0f64, |most, value| most.max(value.abs()));
    if values.is_empty() || most <= 0.0 {
        return;
    }
    let each = WIDTH / values.len() as f64;
    let _ = write!(
        out,
        "<svg viewBox=\"0 0 {WIDTH} {}\" width=\"100%\" role=img aria-label=\"{label}\"><text x=0 y=12>{label}; the highest is {most:.4}</text>",
        HEIGHT + 22.0
    );
    for (index, value) in values.iter().enumerate() {
        let height = HEIGHT * value.abs() / most;
        let _ = write!(
            out,
            "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{height:.1}\" fill=\"{}\"><title>{index}: {value:.4}</title></rect>",
            index as f64 * each,
            HEIGHT + 20.0 - height,
            (0.85 * each).max(0.5),
            if *value < 0.0 { "#4c9f70" } else { "#c44e52" }
        );
    }
    out.push_str("</svg>");
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_shows_what_became_worse_and_escapes_it() {
        let item = |answer: &str, score: f64| ItemResult {
            question: "<b>?".into(),
            answer: answer.into(),
            score,
            ..ItemResult::default()
        };
        let task = |items| TaskResult {
            name: "own".into(),
            is_loss: false,
            items,
        };
        let before = [task(vec![item("first", 1.0), item("second", 1.0)])];
        let after = [task(vec![item("first", 1.0), item("<script>", 0.0)])];
        let page = html("suite", "model", &after, Some(("reference", &before)));
        assert!(page.contains("&lt;script&gt;") && !page.contains("<script>"));
        assert!(page.contains("<pre>second</pre>") && !page.contains("<pre>first</pre>"));
        assert!(!page.contains("http"), "needs nothing else");
    }
}
