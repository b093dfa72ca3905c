//! The dead letters: listed by filter, shown whole, and tried again in a new round.

use axum::{
    Json,
    body::Body,
    extract::{Path, State},
};
use http::HeaderMap;
use ingest::http::{Patience, Refusal, read_body};
use pipeline::requeue::{Refused, Report, Which};
use schemas::{
    Code, MessageId, Problem,
    port::{Dead, Filter},
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Admin, Administrator,
    query::{Parameters, read_cursor, write_cursor},
};

/// A dead letter without what it says: a list is for choosing.
fn summary(dead: &Dead) -> Value {
    let message = dead.message.as_ref();
    json!({
        "id": dead.id,
        "at": dead.at,
        "tenant": dead.inbox.user.tenant,
        "to": dead.inbox.user.party,
        "from": message.map(|m| &m.from),
        "priority": message.map(|m| m.priority),
        "accepted_at": message.map(|m| m.accepted_at),
        "reason": dead.reason,
        "round": dead.round,
        "attempts": dead.attempts,
        "requeued_at": dead.requeued_at,
    })
}

/// A dead letter with everything known of it.
fn whole(dead: &Dead) -> Value {
    let mut value = summary(dead);
    if let (Value::Object(map), Some(message)) = (&mut value, &dead.message) {
        map.insert("ref".to_owned(), json!(message.client_ref));
        map.insert("subject".to_owned(), json!(message.content.subject));
        map.insert("content".to_owned(), json!(message.content.body));
        map.insert("content_type".to_owned(), json!(message.content.content_type));
        map.insert("metadata".to_owned(), json!(message.metadata));
        map.insert("traceparent".to_owned(), json!(message.trace));
    }
    value
}

/// Holds a filter to what its caller may see.
fn scoped(mut filter: Filter, who: &Administrator) -> Result<Filter, Problem> {
    let asked = filter.tenant.as_ref().or(filter.user.as_ref().map(|user| &user.tenant));
    if let Some(tenant) = asked
        && !who.sees(tenant)
    {
        return Err(Problem::new(Code::Forbidden, format!("this token does not see the dead letters of {tenant}")));
    }
    filter.tenant = filter.tenant.or_else(|| who.scope.clone());
    Ok(filter)
}

pub(super) async fn list(
    State(admin): State<Admin>,
    who: Administrator,
    mut query: Parameters,
) -> Result<Json<Value>, Refusal> {
    let filter = scoped(query.filter()?, &who)?;
    let limit = query.limit()?;
    let from = query.take::<String>("cursor")?.map(|text| read_cursor(&text)).transpose()?;
    query.end()?;
    let page = admin.0.history.dead(&filter, from, limit).await?;
    let items: Vec<_> = page.rows.iter().map(summary).collect();
    Ok(Json(json!({ "items": items, "next_cursor": page.next.map(write_cursor) })))
}

pub(super) async fn show(
    State(admin): State<Admin>,
    who: Administrator,
    Path(id): Path<String>,
) -> Result<Json<Value>, Refusal> {
    let unknown = || Problem::new(Code::NotFound, "there is no dead letter of this id");
    let id: MessageId = id.parse().map_err(|_| unknown())?;
    let dead = admin.0.history.dead_letter(id).await?.filter(|dead| who.sees(&dead.inbox.user.tenant));
    let dead = dead.ok_or_else(unknown)?;
    tracing::info!(%id, by = %who.caller.who, tenant = %who.caller.tenant, "a dead letter was shown");
    Ok(Json(whole(&dead)))
}

/// The body of a requeue: ids or a filter, one of them.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    #[serde(default)]
    ids: Option<Vec<MessageId>>,
    #[serde(default)]
    filter: Option<Filter>,
    #[serde(default)]
    dry_run: bool,
}

pub(super) async fn requeue(
    State(admin): State<Admin>,
    who: Administrator,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Report>, Refusal> {
    let max = admin.0.limits.door.body_bytes;
    let bytes = read_body(&headers, body, max, Patience::of(&admin.0.limits.door)).await?;
    let asked: Asked = serde_json::from_slice(&bytes).map_err(|why| {
        let code = if why.is_data() { Code::InvalidField } else { Code::InvalidJson };
        Problem::new(
            code,
            format!("{why}; write {{\"ids\": [...]}} or {{\"filter\": {{...}}}}, and \"dry_run\" if wanted"),
        )
    })?;
    let mut foreign = Vec::new();
    let which = match (asked.ids, asked.filter) {
        (Some(ids), None) => {
            let mut own = Vec::with_capacity(ids.len());
            for id in ids {
                // Another tenant's is answered as one that is not there.
                let is_foreign = match (&who.scope, admin.0.history.dead_letter(id).await?) {
                    (Some(_), Some(dead)) => !who.sees(&dead.inbox.user.tenant),
                    _ => false,
                };
                if is_foreign { foreign.push(id) } else { own.push(id) }
            }
            Which::Ids(own)
        }
        (None, Some(filter)) => Which::Filter(scoped(filter, &who)?),
        _ => {
            let detail = "name either `ids` or a `filter` (an empty filter means all that are not requeued yet)";
            return Err(Problem::new(Code::InvalidField, detail).into());
        }
    };
    let parts = &admin.0;
    let mut report =
        pipeline::requeue::requeue(&*parts.log, &*parts.history, &*parts.clock, which, asked.dry_run).await?;
    report.refused += foreign.len() as u64;
    let unknown = |id| Refused { id, why: "there is no dead letter of this id".to_owned() };
    report.refusals.extend(foreign.into_iter().map(unknown));
    tracing::info!(
        by = %who.caller.who, tenant = %who.caller.tenant, requeued = report.requeued, refused = report.refused,
        dry_run = report.dry_run, "dead letters were requeued"
    );
    Ok(Json(report))
}
