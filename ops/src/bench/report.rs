//! What a benchmark tells: a table for people, JSON for programs, and a page with plots.

use std::{fmt::Write as _, path::Path, process::Stdio, time::Duration};

use anyhow::{Context, Result};
use serde::Serialize;

use super::{
    LIFTED, Stage,
    measure::{Figure, Series, bare_syncs},
};
use crate::serve::{Bounds, Serving};

/// Everything that was measured.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// What it ran on.
    pub machine: String,
    /// Seconds of each load.
    pub seconds: u64,
    /// Limits that were lifted.
    pub lifted: Vec<String>,
    /// The figures.
    pub figures: Vec<Figure>,
    /// What the plots show.
    pub series: Vec<Series>,
    /// Peak of the singles, where it was measured: later loads are a share of it.
    #[serde(skip)]
    pub(crate) singles_peak: Option<f64>,
}

impl Report {
    /// Measures the bare disk first.
    pub(crate) fn begin(stage: &Stage) -> Result<Self> {
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpu.lines().find_map(|l| l.strip_prefix("model name\t: ")).unwrap_or("unknown CPU").to_owned();
        let lifted = LIFTED.iter().map(|s| (*s).to_owned()).chain(stage.bench.set.iter().cloned()).collect();
        let mut report = Self {
            machine: format!("{cores} cores, {model}"),
            seconds: stage.bench.seconds,
            lifted,
            ..Self::default()
        };
        let sync = bare_syncs(&stage.bench.folder, stage.clock, Duration::from_secs(1), Duration::ZERO)?;
        let ms = |q| sync.value_at_quantile(q) as f64 / 1e3;
        report.add(Figure::new("disk", "bare 4 KiB append and sync, p50", ms(0.5), "ms"));
        report.add(Figure::new("disk", "bare 4 KiB append and sync, p99", ms(0.99), "ms"));
        Ok(report)
    }

    pub(crate) fn add(&mut self, figure: Figure) {
        self.figures.push(figure);
    }

    /// The table.
    pub fn table(&self) -> String {
        let mut table = comfy_table::Table::new();
        table.load_style(comfy_table::presets::UTF8_HORIZONTAL_ONLY);
        table.set_header(["scenario", "what", "measured", "first", "aim", "beside"]);
        for f in &self.figures {
            table.add_row(self.row(f));
        }
        format!("{}\n{table}\nlifted: {}\n", self.machine, self.lifted.join(" "))
    }

    /// One figure's cells.
    fn row(&self, f: &Figure) -> [String; 6] {
        let target = |t: Option<f64>| t.map(|t| number(t, f.unit)).unwrap_or_default();
        let beside = f
            .baseline
            .as_ref()
            .map(|(what, v)| format!("{what}: {} ({:.2}×)", number(*v, ""), f.value / v))
            .unwrap_or_default();
        [f.scenario.to_owned(), f.name.clone(), number(f.value, f.unit), target(f.first), target(f.aim), beside]
    }

    /// A page of its own: the table, and for each scenario its percentiles and its seconds.
    pub fn html(&self) -> String {
        let mut page = String::from(
            "<!doctype html><meta charset=utf-8><title>Esh3ar bench</title><style>body{font:14px system-ui;margin:2em;max-width:70em}table{border-collapse:collapse}td,th{text-align:left;padding:.3em 1em .3em 0;border-bottom:1px solid #ddd}svg{background:#f7f7f7;margin:.5em 1em .5em 0}</style><h1>Esh3ar bench</h1>",
        );
        let text = |t: &str| t.replace('&', "&amp;").replace('<', "&lt;");
        let _ = write!(
            page,
            "<p>{}</p><table><tr><th>scenario<th>what<th>measured<th>first<th>aim<th>beside",
            text(&self.machine)
        );
        for f in &self.figures {
            let _ = write!(page, "<tr><td>{}", self.row(f).map(|cell| text(&cell)).join("<td>"));
        }
        let _ = write!(page, "</table><p>Lifted: {}</p>", text(&self.lifted.join(" ")));
        for series in &self.series {
            let _ = write!(page, "<h2>{}</h2>", series.scenario);
            let latency: Vec<_> = series.latency.iter().map(|(p, ms)| (format!("p{p}"), *ms)).collect();
            page.push_str(&bars("latency, ms", &latency));
            let seconds: Vec<_> =
                series.per_second.iter().enumerate().map(|(n, v)| (format!("{n}s"), *v as f64)).collect();
            page.push_str(&bars("deliveries a second", &seconds));
        }
        page
    }
}

fn number(value: f64, unit: &str) -> String {
    let text = if value >= 1_000.0 {
        format!("{value:.0}")
    } else if value >= 10.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.2}")
    };
    if unit.is_empty() { text } else { format!("{text} {unit}") }
}

/// A bar chart as SVG.
fn bars(title: &str, values: &[(String, f64)]) -> String {
    if values.is_empty() {
        return String::new();
    }
    let most = values.iter().map(|(_, v)| *v).fold(f64::MIN_POSITIVE, f64::max);
    let step = 640.0 / values.len() as f64;
    let mut svg = format!(
        "<svg width=700 height=240 role=img aria-label='{title}'><text x=10 y=18>{title} (highest {})</text>",
        number(most, "")
    );
    for (n, (label, value)) in values.iter().enumerate() {
        let (x, height) = (30.0 + n as f64 * step, 150.0 * value / most);
        let _ = write!(
            svg,
            "<rect x={x:.1} y={:.1} width={:.1} height={height:.1} fill='#2a6f97'><title>{label}: {}</title></rect>",
            200.0 - height,
            step * 0.8,
            number(*value, "")
        );
        if values.len() <= 20 {
            let _ = write!(
                svg,
                "<text x={x:.1} y=215 font-size=10>{label}</text><text x={x:.1} y={:.1} font-size=10>{}</text>",
                196.0 - height,
                number(*value, "")
            );
        }
    }
    svg + "</svg>"
}

/// A process of this binary that is nothing but an axum route: the same sockets, the same runtime, no work.
pub(crate) struct BareServer {
    child: std::process::Child,
    /// Where it listens.
    pub(crate) address: String,
}

impl Drop for BareServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts one.
pub(crate) fn bare_server() -> Result<BareServer> {
    use std::io::BufRead as _;
    let mut child = std::process::Command::new(std::env::current_exe()?)
        .args(["bench", "--serve-bare"])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut address = String::new();
    std::io::BufReader::new(child.stdout.take().context("no standard output")?).read_line(&mut address)?;
    Ok(BareServer { child, address: address.trim().to_owned() })
}

/// What that process runs: takes a body and answers 202, through the same listener code as the product.
pub async fn serve_bare() -> Result<()> {
    use std::io::Write as _;
    let router = axum::Router::new()
        .route("/v1/messages", axum::routing::post(|_: bytes::Bytes| async { axum::http::StatusCode::ACCEPTED }));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let mut out = std::io::stdout();
    writeln!(out, "{}", listener.local_addr()?)?;
    out.flush()?;
    let _serving = Serving::start(listener, router, Bounds { connections: 10_000, head_ms: 60_000 })?;
    std::future::pending().await
}

/// Writes the page.
pub fn write_page(report: &Report, path: &Path) -> Result<()> {
    std::fs::write(path, report.html()).with_context(|| format!("writing {}", path.display()))
}
