//! Metrics that are states and not events: what is in flight, what is kept. Looked at every second, so that a scrape costs the
//! parts nothing. What waits at the door and how many sockets are held is told by the door and the gateway.

use std::{sync::Arc, time::Duration};

use metrics_exporter_prometheus::PrometheusHandle;
use schemas::{Priority, port::History};

use crate::{admin::Running, compose::Kept};

/// How often.
const EVERY: Duration = Duration::from_secs(1);

/// What is looked at.
pub struct Parts {
    /// The history, where this process tells what is kept: that with the dataflow, because the sum of all would be too much.
    pub history: Option<Arc<dyn History>>,
    /// The dataflow, where it runs here.
    pub pipeline: Running,
    /// The stores.
    pub stores: Kept,
    /// What keeps histograms small while nobody scrapes.
    pub metrics: PrometheusHandle,
}

/// Looks, until it is aborted.
pub async fn keep(parts: Parts) {
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    for round in 0u64.. {
        ticks.tick().await;
        lanes(&parts);
        if let Some(stats) = parts.stores.lock().as_ref().and_then(stores::Stores::stats) {
            store(&stats);
        }
        if let Some(traffic) = parts.stores.lock().as_ref().and_then(stores::Stores::traffic) {
            metrics::counter!("esh3ar_history_rows_total").absolute(traffic.rows);
            metrics::counter!("esh3ar_history_requests_total").absolute(traffic.requests);
            for (statement, reads) in traffic.reads {
                metrics::counter!("esh3ar_history_reads_total", "statement" => statement).absolute(reads);
            }
        }
        if round % 5 == 0 {
            tenants(&parts);
            if let Some(history) = &parts.history {
                sizes(&**history).await;
            }
            parts.metrics.run_upkeep();
        }
    }
}

fn lanes(parts: &Parts) {
    let Some(gauges) = parts.pipeline.lock().as_ref().map(pipeline::Pipeline::gauges) else { return };
    for lane in Priority::ALL {
        let (i, word) = (usize::from(lane.number()), lane.word());
        metrics::gauge!("esh3ar_lane_in_flight_messages", "lane" => word).set(gauges.in_flight[i] as f64);
        metrics::counter!("esh3ar_batches_total", "lane" => word).absolute(gauges.batches[i]);
        metrics::counter!("esh3ar_recorded_total", "lane" => word).absolute(gauges.recorded[i]);
        metrics::counter!("esh3ar_repeats_total", "lane" => word).absolute(gauges.repeats[i]);
        metrics::counter!("esh3ar_parked_total", "lane" => word).absolute(gauges.parked[i]);
        metrics::counter!("esh3ar_retries_total", "lane" => word).absolute(gauges.retries[i]);
        metrics::counter!("esh3ar_buried_total", "lane" => word).absolute(gauges.buried[i]);
    }
    metrics::gauge!("esh3ar_retry_waiting_messages").set(gauges.retries_waiting as f64);
    metrics::gauge!("esh3ar_acknowledgements_waiting").set(gauges.armed as f64);
    metrics::gauge!("esh3ar_unlocated_users").set(gauges.unlocated as f64);
}

/// The tenants that have a name in the metrics, and all others together.
fn tenants(parts: &Parts) {
    let by_tenant = parts.pipeline.lock().as_ref().map(pipeline::Pipeline::by_tenant).unwrap_or_default();
    for (tenant, lanes) in by_tenant {
        for (lane, of) in Priority::ALL.into_iter().zip(lanes) {
            let labels = [("lane", lane.word().to_owned()), ("tenant", tenant.clone())];
            metrics::gauge!("esh3ar_tenant_in_flight_messages", &labels).set(of.in_flight as f64);
            metrics::gauge!("esh3ar_tenant_waiting_messages", &labels).set(of.waiting as f64);
            metrics::gauge!("esh3ar_tenant_retry_waiting_messages", &labels).set(of.retry_waiting as f64);
            metrics::counter!("esh3ar_tenant_recorded_total", &labels).absolute(of.recorded);
            metrics::counter!("esh3ar_tenant_parked_total", &labels).absolute(of.parked);
            metrics::counter!("esh3ar_tenant_scheduled_total", &labels).absolute(of.scheduled);
            metrics::counter!("esh3ar_tenant_retries_total", &labels).absolute(of.retried);
            metrics::counter!("esh3ar_tenant_buried_total", &labels).absolute(of.buried);
        }
    }
}

fn store(stats: &stores::Stats) {
    metrics::counter!("esh3ar_store_syncs_total").absolute(stats.syncs);
    metrics::counter!("esh3ar_store_groups_total").absolute(stats.groups);
    metrics::counter!("esh3ar_store_writes_total").absolute(stats.writes);
    metrics::counter!("esh3ar_store_written_bytes_total").absolute(stats.bytes);
}

async fn sizes(history: &dyn History) {
    if let Ok((kept, scheduled)) = history.sizes().await {
        metrics::gauge!("esh3ar_kept_messages").set(kept as f64);
        metrics::gauge!("esh3ar_scheduled_messages").set(scheduled as f64);
    }
    if let Ok(dead) = history.dead_count().await {
        metrics::gauge!("esh3ar_dead_letters").set(dead as f64);
    }
}
