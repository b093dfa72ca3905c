//! How the installation does: the books, the nodes, the lanes; and how to end this process gently.

use axum::{Json, extract::State, http::StatusCode};
use ingest::http::Refusal;
use pipeline::books::Books;
use schemas::{Priority, Tenant};
use serde_json::{Value, json};

use super::{Admin, Administrator};

/// The books as they are told: with whether they balance.
pub fn told(books: &Books) -> Value {
    let mut value = serde_json::to_value(books).unwrap_or_default();
    if let Value::Object(map) = &mut value {
        map.insert("balanced".to_owned(), json!(books.balanced()));
    }
    value
}

/// One tenant's part of the books. The cut tells everybody's volume, so it stays out.
fn part(books: Books, tenant: &Tenant) -> Books {
    let account = books.tenants.get(tenant).copied().unwrap_or_default();
    let residue = books.residue.into_iter().filter(|residue| residue.tenant == *tenant).collect();
    Books { total: account, tenants: [(tenant.clone(), account)].into(), residue, ..Books::default() }
}

pub(super) async fn books(State(admin): State<Admin>, who: Administrator) -> Result<Json<Value>, Refusal> {
    let books = pipeline::books::audit(&*admin.0.log, &*admin.0.history).await?;
    Ok(Json(told(&match &who.scope {
        None => books,
        Some(tenant) => part(books, tenant),
    })))
}

pub(super) async fn nodes(State(admin): State<Admin>, _who: Administrator) -> Result<Json<Value>, Refusal> {
    Ok(Json(json!({ "items": admin.0.presence.nodes().await? })))
}

/// What waits, installation-wide, and what this process's part of the dataflow does with it, where it has one.
pub(super) async fn lanes(State(admin): State<Admin>, _who: Administrator) -> Result<Json<Value>, Refusal> {
    let parts = &admin.0;
    let mut waiting = [0; 3];
    for lane in Priority::ALL {
        let at = usize::from(lane.number());
        waiting[at] = match &parts.door {
            Some(door) => door.waiting()[at],
            None => ingest::lanes::ask(&parts.log, lane).await?,
        };
    }
    let gauges = parts.pipeline.lock().as_ref().map(pipeline::Pipeline::gauges);
    let (kept, scheduled) = parts.history.sizes().await?;
    let sessions = match &parts.gateway {
        Some(gateway) => gateway.sessions(),
        None => parts.presence.nodes().await?.iter().map(|node| node.sessions).sum(),
    };
    let lane = |lane: Priority| {
        let i = usize::from(lane.number());
        let mut shown = json!({ "lane": lane, "waiting": waiting[i] });
        if let (Some(gauges), Value::Object(shown)) = (&gauges, &mut shown) {
            for (name, counts) in [
                ("in_flight", &gauges.in_flight),
                ("batches", &gauges.batches),
                ("recorded", &gauges.recorded),
                ("repeats", &gauges.repeats),
                ("parked", &gauges.parked),
                ("retries", &gauges.retries),
                ("buried", &gauges.buried),
            ] {
                shown.insert(name.to_owned(), json!(counts[i]));
            }
        }
        shown
    };
    let mut all = json!({
        "lanes": Priority::ALL.map(lane),
        "scheduled": scheduled,
        "kept": kept,
        "dead": parts.history.dead_count().await?,
        "sessions": sessions,
    });
    if let (Some(gauges), Value::Object(all)) = (gauges, &mut all) {
        all.insert("retry_waiting".to_owned(), json!(gauges.retries_waiting));
        all.insert("acknowledgements_waiting".to_owned(), json!(gauges.armed));
    }
    Ok(Json(all))
}

pub(super) async fn drain(
    State(admin): State<Admin>,
    who: Administrator,
) -> Result<(StatusCode, Json<Value>), Refusal> {
    who.operator(&admin.0.operators)?;
    tracing::info!(by = %who.caller.who, tenant = %who.caller.tenant, "asked to end by an administrator");
    admin.0.drain.send_replace(true);
    Ok((StatusCode::ACCEPTED, Json(json!({ "status": "draining" }))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use pipeline::books::Account;

    #[test]
    fn a_tenant_s_books_hold_its_own_account_alone() {
        let account = |accepted| Account { accepted, delivered: accepted, ..Account::default() };
        let name = |text| Tenant::parse(text).unwrap();
        let tenants = [(name("acme"), account(3)), (name("other"), account(4))].into();
        let books = Books { total: account(7), tenants, ..Books::default() };
        let value = told(&part(books, &name("acme")));
        assert_eq!((value["total"]["accepted"].as_u64(), value["balanced"].as_bool()), (Some(3), Some(true)));
        assert!(!value.to_string().contains("other"));
    }
}
