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

pub(super) async fn lanes(State(admin): State<Admin>, _who: Administrator) -> Result<Json<Value>, Refusal> {
    let waiting = admin.0.door.waiting();
    let gauges = admin.0.pipeline.lock().as_ref().map(pipeline::Pipeline::gauges).unwrap_or_default();
    let (kept, scheduled) = admin.0.history.sizes().await?;
    let lane = |lane: Priority| {
        let i = usize::from(lane.number());
        json!({
            "lane": lane,
            "waiting": waiting[i],
            "in_flight": gauges.in_flight[i],
            "batches": gauges.batches[i],
            "recorded": gauges.recorded[i],
            "repeats": gauges.repeats[i],
            "parked": gauges.parked[i],
            "retries": gauges.retries[i],
            "buried": gauges.buried[i],
        })
    };
    Ok(Json(json!({
        "lanes": Priority::ALL.map(lane),
        "retry_waiting": gauges.retries_waiting,
        "acknowledgements_waiting": gauges.armed,
        "scheduled": scheduled,
        "kept": kept,
        "dead": admin.0.history.dead_count().await?,
        "sessions": admin.0.gateway.sessions(),
    })))
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
