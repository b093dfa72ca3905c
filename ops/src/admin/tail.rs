//! `GET /admin/v1/tail/{topic}`: the records of a topic as lines of JSON, decoded and redacted.

use axum::{
    body::{Body, Bytes},
    extract::{Path, State},
    response::{IntoResponse, Response},
};
use futures::{StreamExt, TryStreamExt};
use http::header;
use ingest::http::{NDJSON, Refusal};
use schemas::{Code, Partition, Problem, Topic};

use super::{Admin, Administrator, query::Parameters};
use crate::tail::{Start, Wanted, read};

pub(super) async fn tail(
    State(admin): State<Admin>,
    who: Administrator,
    Path(topic): Path<String>,
    mut query: Parameters,
) -> Result<Response, Refusal> {
    let topic = Topic::parse(&topic).ok_or_else(|| {
        let names: Vec<_> = Topic::all().map(|topic| topic.name().trim_start_matches("esh3ar.")).collect();
        Problem::new(Code::NotFound, format!("there is no topic {topic}; there are {}", names.join(", ")))
    })?;
    let follow = query.take("follow")?.unwrap_or(false);
    let partition = query.take::<u16>("partition")?.map(Partition);
    if partition.is_some_and(|p| p.0 >= admin.0.log.partitions()) {
        let detail = format!("`partition` must be below {}", admin.0.log.partitions());
        return Err(Problem::new(Code::InvalidQuery, detail).at("partition").into());
    }
    let from = query.take("from")?.unwrap_or(if follow { Start::End } else { Start::First });
    let count = query.take::<usize>("count")?.unwrap_or(usize::MAX);
    query.end()?;
    let wanted = Wanted { topic, partition, from, follow, tenant: who.scope };
    let mut draining = admin.0.drain.subscribe();
    // A follower would hold up the end of the process.
    let end = async move {
        let _ = draining.wait_for(|drain| *drain).await;
    };
    let lines = read(admin.0.log.clone(), wanted)
        .await?
        .take(count)
        .take_until(Box::pin(end))
        .map_ok(|value| Bytes::from(format!("{value}\n")));
    Ok(([(header::CONTENT_TYPE, NDJSON)], Body::from_stream(lines)).into_response())
}
