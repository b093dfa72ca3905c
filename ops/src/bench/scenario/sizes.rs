//! Whether a message costs more with many users than with few, and in three lanes than in one: peaks at each size. Many users
//! share fewer frames and acknowledgements than few do, so for them each item has a frame and an acknowledgement of its own:
//! what differs then is the number of users alone.

use std::time::Duration;

use anyhow::Result;
use schemas::Priority;

use super::{
    super::{Report, Stage, measure::Figure, report::number},
    end_to_end::{Peak, curve, peak, peak_of},
};

/// One item a frame, and as many acknowledgements as there are items.
const ALONE: &[&str] = &["limits.socket.frame_items=1", "limits.socket.frames_per_second=1000000"];

/// Users that are connected and sent to.
const USERS: [usize; 4] = [100, 1_000, 7_500, 15_000];

fn add(report: &mut Report, scenario: &'static str, size: &'static str, peaks: &[(f64, Peak)]) {
    for (n, peak) in peaks {
        let name = format!(
            "CPU per message at peak, {} {size} ({:.1} items a frame, {:.2} acknowledgements each)",
            number(*n, "").trim_end_matches(".00"),
            peak.per_frame,
            peak.acks
        );
        report.add(Figure::new(scenario, name, peak.cpu_micros, "µs"));
    }
    for curve in curve(scenario, size, peaks) {
        report.curve(curve);
    }
}

/// By users.
pub(crate) async fn users(stage: &Stage, report: &mut Report) -> Result<()> {
    const NAME: &str = "users";
    let mut peaks = Vec::new();
    for users in USERS {
        let peak = peak_of(stage, report, NAME, users, &[Priority::Normal], ALONE, Duration::ZERO).await?;
        peaks.push((users as f64, peak));
    }
    add(report, NAME, "users", &peaks);
    Ok(())
}

/// By lanes.
pub(crate) async fn lanes(stage: &Stage, report: &mut Report) -> Result<()> {
    const NAME: &str = "lanes";
    let mut peaks = Vec::new();
    for lanes in [&[Priority::Normal][..], &Priority::ALL[..]] {
        peaks.push((lanes.len() as f64, peak(stage, report, NAME, stage.bench.users, lanes).await?));
    }
    add(report, NAME, "lanes", &peaks);
    Ok(())
}
