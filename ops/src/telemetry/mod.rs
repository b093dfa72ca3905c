//! What the process tells of itself: logs, metrics and one span per traced request.

pub mod gauges;
pub mod http;
pub mod words;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::{EnvFilter, Layer, layer::SubscriberExt, util::SubscriberInitExt};

use crate::{config::LogConfig, exit::Failure};

/// Latency buckets in seconds, from what a cache answers to what a deadline ends.
const SECONDS: [f64; 14] = [0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0];

/// Buckets of counted things: batch sizes, records a group.
const COUNTS: [f64; 12] = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1_000.0, 5_000.0, 20_000.0];

/// Starts logging to standard error. A second call in one process changes nothing.
pub fn logs(config: &LogConfig) -> Result<(), Failure> {
    let filter = EnvFilter::try_new(&config.level).map_err(|why| Failure::usage(format!("`log.level`: {why}")))?;
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let layer = if config.format == "json" {
        layer.json().flatten_event(true).with_current_span(true).with_span_list(false).boxed()
    } else {
        layer.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).with_target(false).boxed()
    };
    let _ = tracing_subscriber::registry().with(layer.with_filter(filter)).try_init();
    Ok(())
}

/// Starts keeping metrics; the handle renders them. A second call in one process gives a handle of its own that stays empty.
pub fn metrics() -> Result<PrometheusHandle, Failure> {
    let cannot = |why: &dyn std::fmt::Display| Failure::failed(format!("metrics cannot be kept: {why}"));
    let recorder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)
        .and_then(|builder| builder.set_buckets(&COUNTS))
        .map_err(|why| cannot(&why))?
        .build_recorder();
    let handle = recorder.handle();
    if metrics::set_global_recorder(recorder).is_err() {
        tracing::debug!("metrics are kept already");
    }
    words::describe();
    Ok(handle)
}
