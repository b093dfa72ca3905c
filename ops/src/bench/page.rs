//! The report as one page of its own: for each scenario its figures, its plots, what it lifted and what became of its messages.

use std::{fmt::Write as _, path::Path};

use anyhow::{Context, Result};

use super::{
    measure::Curve,
    report::{Report, number, row, sentence},
};

const STYLE: &str = "body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:64rem;padding:0 1rem;color:#1c2733;background:#fff}
h1{font-size:1.6rem;margin:0}h2{font-size:1.15rem;margin:2.2rem 0 .4rem;border-bottom:2px solid #2a6f97;padding-bottom:.2rem}
p{margin:.3rem 0}.quiet{color:#5b6b7a;font-size:.87rem;overflow-wrap:anywhere}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
td,th{text-align:left;padding:.3rem .9rem .3rem 0;border-bottom:1px solid #e3e8ed;vertical-align:top}
td:nth-child(2),td:nth-child(3),td:nth-child(4){white-space:nowrap}td.missed{color:#b3261e;font-weight:600}td.met{color:#1b6e3c;font-weight:600}
svg{background:#f6f8fa;border-radius:6px;margin:.7rem .7rem 0 0;max-width:100%}svg text{font:11px system-ui,sans-serif;fill:#33414e}";

/// Width and height of a plot, and of the room around it.
const SIZE: (f64, f64) = (480.0, 230.0);
const ROOM: (f64, f64, f64, f64) = (58.0, 36.0, 24.0, 34.0);

/// Writes the page.
pub fn write(report: &Report, path: &Path) -> Result<()> {
    std::fs::write(path, html(report)).with_context(|| format!("writing {}", path.display()))
}

fn text(raw: &str) -> String {
    raw.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;")
}

fn html(report: &Report) -> String {
    let mut page = format!(
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width\"><title>Esh3ar \
         bench</title><style>{STYLE}</style><h1>Esh3ar bench</h1><p class=quiet>{}, {} s of each load after its warm-up</p>",
        text(&report.machine),
        report.seconds
    );
    let mut scenarios: Vec<&str> = Vec::new();
    for figure in &report.figures {
        if !scenarios.contains(&figure.scenario) {
            scenarios.push(figure.scenario);
        }
    }
    for scenario in scenarios {
        section(&mut page, report, scenario);
    }
    page + "</html>\n"
}

fn section(page: &mut String, report: &Report, scenario: &str) {
    let _ = write!(page, "<h2>{scenario}</h2><table><tr><th>what<th>measured<th>first target<th>aim<th>beside");
    for figure in report.figures.iter().filter(|f| f.scenario == scenario) {
        let [_, name, value, first, aim, beside] = row(figure).map(|cell| text(&cell));
        let class = match figure.first {
            None => "",
            Some(first) if is_met(figure.unit, figure.value, first) => " class=met",
            Some(_) => " class=missed",
        };
        let _ = write!(page, "<tr><td>{name}<td{class}>{value}<td>{first}<td>{aim}<td>{beside}");
    }
    page.push_str("</table>");
    for curve in report.curves.iter().filter(|c| c.scenario == scenario) {
        page.push_str(&line(curve));
    }
    for series in report.series.iter().filter(|s| s.scenario == scenario) {
        let name = |p: f64| if p >= 100.0 { "most".to_owned() } else { format!("p{p}") };
        let latency: Vec<_> = series.latency.iter().map(|(p, ms)| (name(*p), *ms)).collect();
        page.push_str(&bars("latency, ms", &latency));
        let seconds: Vec<_> = series.per_second.iter().enumerate().map(|(n, v)| (format!("{n}"), *v as f64)).collect();
        page.push_str(&bars("a second, by second of the load", &seconds));
    }
    for closing in report.closings.iter().filter(|c| c.scenario.starts_with(scenario)) {
        let _ = write!(page, "<p class=quiet>{}</p>", text(&sentence(closing)));
    }
    for (_, lifted) in report.lifted.iter().filter(|(name, _)| name == scenario) {
        let _ = write!(page, "<p class=quiet>Lifted: {}</p>", text(&lifted.join(" ")));
    }
}

/// Whether a value is on the right side of its target: rates and counts are to be high, everything else low.
fn is_met(unit: &str, value: f64, target: f64) -> bool {
    if matches!(unit, "/s" | "") { value >= target } else { value <= target }
}

fn frame(title: &str) -> String {
    let (width, height) = SIZE;
    format!(
        "<svg width={width} height={height} viewBox=\"0 0 {width} {height}\" role=img aria-label=\"{0}\"><text x=12 y=18 font-weight=600>{0}</text>",
        text(title)
    )
}

/// A bar chart.
fn bars(title: &str, values: &[(String, f64)]) -> String {
    if values.is_empty() {
        return String::new();
    }
    let most = values.iter().map(|(_, v)| *v).fold(f64::MIN_POSITIVE, f64::max);
    let (left, top, right, bottom) = ROOM;
    let (step, room) = ((SIZE.0 - left - right) / values.len() as f64, SIZE.1 - top - bottom - 14.0);
    let mut svg = frame(title);
    // Labels that would touch each other say nothing: with many bars only some have one.
    let every = values.len().div_ceil(10);
    for (n, (label, value)) in values.iter().enumerate() {
        let (x, height) = (left + n as f64 * step, room * value / most);
        let (y, foot, width) = (SIZE.1 - bottom - height, SIZE.1 - bottom + 14.0, step * 0.8);
        let shown = number(*value, "");
        let _ = write!(
            svg,
            "<rect x={x:.1} y={y:.1} width={width:.1} height={height:.1} fill=#2a6f97><title>{label}: {shown}</title></rect>"
        );
        if n % every == 0 {
            let middle = x + width / 2.0;
            let _ = write!(svg, "<text x={middle:.1} y={foot:.1} text-anchor=middle>{label}</text>");
            if values.len() <= 10 {
                let _ = write!(svg, "<text x={middle:.1} y={:.1} text-anchor=middle>{shown}</text>", y - 4.0);
            }
        }
    }
    if values.len() > 10 {
        let _ = write!(svg, "<text x={} y=18 text-anchor=end>highest {}</text>", SIZE.0 - 12.0, number(most, ""));
    }
    svg + "</svg>"
}

/// Points stand so far from the sides, so that their labels have room.
const INSET: f64 = 30.0;

/// The top of an axis: 2, 4, 6 or 10 times a power of ten, so that its middle is a round number too.
fn ceiling(most: f64) -> f64 {
    let power = 10f64.powf((most * 1.05).log10().floor());
    let times = [2.0, 4.0, 6.0, 8.0].into_iter().find(|times| times * power >= most * 1.05).unwrap_or(10.0);
    times * power
}

/// A round number, as an axis has it.
fn whole(value: f64) -> String {
    let text = number(value, "");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

/// A curve over a size, which grows by factors: its axis is a logarithm.
fn line(curve: &Curve) -> String {
    let (left, top, right, bottom) = ROOM;
    let most = ceiling(curve.points.iter().map(|(_, y)| *y).fold(f64::MIN_POSITIVE, f64::max));
    let log = |x: f64| x.max(1.0).ln();
    let first = curve.points.first().map_or(0.0, |(x, _)| log(*x));
    let span = (curve.points.last().map_or(1.0, |(x, _)| log(*x)) - first).max(f64::MIN_POSITIVE);
    let place = |x: f64, y: f64| {
        let x = left + INSET + (log(x) - first) / span * (SIZE.0 - left - right - 2.0 * INSET);
        (x, SIZE.1 - bottom - y / most * (SIZE.1 - top - bottom))
    };
    let mut svg = frame(&format!("{} by {}", curve.what, curve.size));
    for share in [0.0, 0.5, 1.0] {
        let y = SIZE.1 - bottom - share * (SIZE.1 - top - bottom);
        let _ = write!(
            svg,
            "<line x1={left} x2={:.1} y1={y:.1} y2={y:.1} stroke=#d5dde4 /><text x={:.1} y={:.1} text-anchor=end>{}</text>",
            SIZE.0 - right,
            left - 6.0,
            y + 4.0,
            whole(most * share)
        );
    }
    let points: Vec<_> =
        curve.points.iter().map(|(x, y)| place(*x, *y)).map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    let _ = write!(svg, "<polyline points=\"{}\" fill=none stroke=#2a6f97 stroke-width=2 />", points.join(" "));
    for (size, value) in &curve.points {
        let (x, y) = place(*size, *value);
        let size = whole(*size);
        let _ = write!(
            svg,
            "<circle cx={x:.1} cy={y:.1} r=4 fill=#2a6f97 /><text x={x:.1} y={:.1} text-anchor=middle>{}</text><text x={x:.1} \
             y={:.1} text-anchor=middle>{size}</text>",
            y - 9.0,
            number(*value, ""),
            SIZE.1 - bottom + 15.0
        );
    }
    svg + "</svg>"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::measure::{Figure, Series};

    #[test]
    fn every_scenario_has_a_section_and_nothing_breaks_out_of_its_place() {
        let mut report = Report { machine: "2 <cores>".to_owned(), ..Report::default() };
        report.add(Figure::new("users", "a & b", 1.0, "µs").targets(2.0, 1.0));
        report.curve(Curve {
            scenario: "users",
            what: "CPU, µs".to_owned(),
            size: "users",
            points: vec![(100.0, 40.0), (15_000.0, 44.0)],
        });
        report.series.push(Series {
            scenario: "users".to_owned(),
            latency: vec![(50.0, 1.0)],
            per_second: vec![5; 60],
        });
        let page = html(&report);
        assert!(page.contains("<h2>users</h2>") && page.contains("2 &lt;cores>") && page.contains("a &amp; b"));
        assert_eq!((page.matches("<svg").count(), page.matches("</svg>").count()), (3, 3));
        assert!(!page.contains("NaN") && !page.contains("inf"));
        assert_eq!((ceiling(66.7), ceiling(19_000.0), ceiling(100.0), ceiling(2.0)), (80.0, 20_000.0, 200.0, 4.0));
        assert_eq!((whole(0.0), whole(20_000.0), whole(40.0)), ("0".to_owned(), "20,000".to_owned(), "40".to_owned()));
        assert!(is_met("/s", 11.0, 10.0) && !is_met("µs", 11.0, 10.0));
    }
}
