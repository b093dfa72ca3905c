//! What the machine says of a process, and what a figure is.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use serde::Serialize;

use crate::clock::SystemClock;

/// Latencies from 1 µs to a minute, three digits.
#[allow(clippy::expect_used)]
pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000, 3).expect("constant bounds are valid")
}

/// One figure of the table.
#[derive(Debug, Clone, Serialize)]
pub struct Figure {
    /// The scenario it belongs to.
    pub scenario: &'static str,
    /// What was measured.
    pub name: String,
    /// How much.
    pub value: f64,
    /// Of what.
    pub unit: &'static str,
    /// The baseline of the same run that it stands beside, and its value.
    pub baseline: Option<(String, f64)>,
    /// The first target.
    pub first: Option<f64>,
    /// What we are after.
    pub aim: Option<f64>,
}

impl Figure {
    /// A figure without targets.
    pub(crate) fn new(scenario: &'static str, name: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self { scenario, name: name.into(), value, unit, baseline: None, first: None, aim: None }
    }

    /// With its targets.
    pub(crate) fn targets(mut self, first: f64, aim: f64) -> Self {
        (self.first, self.aim) = (Some(first), Some(aim));
        self
    }

    /// Beside a baseline of the same run.
    pub(crate) fn beside(mut self, what: impl Into<String>, value: f64) -> Self {
        self.baseline = Some((what.into(), value));
        self
    }
}

/// Percentiles of one scenario, and its throughput second by second: what the plots show.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Series {
    /// The scenario.
    pub scenario: String,
    /// (percentile, ms).
    pub latency: Vec<(f64, f64)>,
    /// Deliveries in each second.
    pub per_second: Vec<u64>,
}

impl Series {
    pub(crate) fn new(scenario: &str, latency: &Histogram<u64>, per_second: Vec<u64>) -> Self {
        let points = [50.0, 75.0, 90.0, 95.0, 99.0, 99.9, 100.0];
        let latency = points.iter().map(|p| (*p, latency.value_at_percentile(*p) as f64 / 1_000.0)).collect();
        Self { scenario: scenario.to_owned(), latency, per_second }
    }
}

/// How a cost goes with a size: flat is what we are after.
#[derive(Debug, Clone, Serialize)]
pub struct Curve {
    /// The scenario.
    pub scenario: &'static str,
    /// What is measured, with its unit.
    pub what: String,
    /// What the size is of.
    pub size: &'static str,
    /// (size, value), sizes rising.
    pub points: Vec<(f64, f64)>,
}

impl Curve {
    /// The highest point over the lowest: 1 where the curve is flat.
    pub(crate) fn spread(&self) -> f64 {
        let values = || self.points.iter().map(|(_, value)| *value);
        let (least, most) = (values().fold(f64::MAX, f64::min), values().fold(0.0, f64::max));
        if least > 0.0 { most / least } else { 0.0 }
    }
}

/// What a process has used so far.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Used {
    /// CPU, µs.
    pub(crate) cpu_micros: f64,
    /// Bytes it caused to be written to storage.
    pub(crate) written: f64,
}

/// CPU and disk of a process, from `/proc` (proc(5): utime and stime are in clock ticks of 1/100 s).
pub(crate) fn used(pid: u32) -> Result<Used> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let rest = stat.rsplit_once(") ").context("the form of /proc/PID/stat")?.1;
    let fields: Vec<&str> = rest.split(' ').collect();
    let ticks: f64 =
        fields.get(11).context("utime")?.parse::<f64>()? + fields.get(12).context("stime")?.parse::<f64>()?;
    let io = std::fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
    let written = io.lines().find_map(|l| l.strip_prefix("write_bytes: ")).and_then(|n| n.parse().ok()).unwrap_or(0.0);
    Ok(Used { cpu_micros: ticks * 10_000.0, written })
}

/// Resident memory of a process, bytes.
pub(crate) fn resident(pid: u32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).context("VmRSS")?;
    Ok(line.split_whitespace().next().context("a number")?.parse::<f64>()? * 1_024.0)
}

/// Syncs of a bare file, one after another: what the disk alone would allow. µs.
pub(crate) fn bare_syncs(
    folder: &Path,
    clock: SystemClock,
    how_long: Duration,
    pause: Duration,
) -> Result<Histogram<u64>> {
    use std::io::Write as _;
    let path = folder.join("bare-sync");
    let mut file = std::fs::File::create(&path)?;
    let (mut times, began) = (histogram(), clock.micros());
    let page = [7u8; 4096];
    while u128::from(clock.micros() - began) < how_long.as_micros() {
        let at = clock.micros();
        file.write_all(&page)?;
        file.sync_data()?;
        times.saturating_record((clock.micros() - at).max(1));
        if !pause.is_zero() {
            std::thread::park_timeout(pause);
        }
    }
    std::fs::remove_file(&path)?;
    Ok(times)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flat_curve_spreads_by_one() {
        let curve = |values: &[f64]| Curve {
            scenario: "users",
            what: "CPU".to_owned(),
            size: "users",
            points: values.iter().enumerate().map(|(n, v)| (n as f64, *v)).collect(),
        };
        assert!((curve(&[40.0, 40.0]).spread() - 1.0).abs() < 1e-9);
        assert!((curve(&[40.0, 60.0, 20.0]).spread() - 3.0).abs() < 1e-9);
    }

    #[test]
    fn this_process_uses_something() {
        let pid = std::process::id();
        assert!(resident(pid).unwrap() > 100_000.0 && used(pid).unwrap().cpu_micros >= 0.0);
    }
}
