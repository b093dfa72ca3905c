//! Whether a message costs more with many users than with few, and in three lanes than in one: peaks at each size. What a few
//! users get within a moment shares more than its frames and acknowledgements: wake-ups of a session, its writes, the rows of
//! a cursor. So each item has a frame and an acknowledgement of its own, and the load comes in two ways: to a hundred of them
//! at a time, where the number of users is all that differs, and to all by turns, where what is shared differs too.

use std::time::Duration;

use anyhow::Result;
use schemas::Priority;

use super::{
    super::{Report, Stage, measure::Figure, report::number},
    end_to_end::{Peak, Recipients, curve, peak, peak_of},
};

/// One item a frame, and as many acknowledgements as there are items.
const ALONE: &[&str] = &["limits.socket.frame_items=1", "limits.socket.frames_per_second=1000000"];

/// Users that are connected and sent to.
const USERS: [usize; 4] = [100, 1_000, 7_500, 15_000];

fn add(report: &mut Report, scenario: &'static str, size: &'static str, peaks: &[(f64, Peak)]) {
    for (n, peak) in peaks {
        let name = format!(
            "CPU per message at peak, {} {size} ({:.1} items a frame, {:.2} acknowledgements each)",
            number(*n, "").trim_end_matches(".00").trim_end_matches(".0"),
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
    for (size, most) in [("users, a hundred at a time", USERS[0]), ("users, all by turns", usize::MAX)] {
        let mut peaks = Vec::new();
        for users in USERS {
            let to = Recipients { users, at_a_time: users.min(most) };
            let peak = peak_of(stage, report, NAME, to, &[Priority::Normal], ALONE, Duration::ZERO).await?;
            peaks.push((users as f64, peak));
        }
        add(report, NAME, size, &peaks);
    }
    Ok(())
}

/// By lanes.
pub(crate) async fn lanes(stage: &Stage, report: &mut Report) -> Result<()> {
    const NAME: &str = "lanes";
    let mut peaks = Vec::new();
    for lanes in [&[Priority::Normal][..], &Priority::ALL[..]] {
        peaks.push((lanes.len() as f64, peak(stage, report, NAME, Recipients::all(stage.bench.users), lanes).await?));
    }
    add(report, NAME, "lanes", &peaks);
    Ok(())
}
