//! The schema: created and brought up to date by [`apply`], compared by [`check`].
//!
//! `schemas/cql` holds numbered files; what was applied stands in `schema_versions`. Versions are applied in order, each
//! statement being one that may be repeated, so that an interrupted run is simply run again.

use std::time::Duration;

use schemas::limits::StoreLimits;
use scylla::client::session::Session;

use super::connecting::{Fault, connect};
use crate::{OpenError, urls::Address};

/// The versions, in order.
const VERSIONS: &[(i32, &str)] = &[
    (1, include_str!("../../../../schemas/cql/001_history.cql")),
    (2, include_str!("../../../../schemas/cql/002_installation.cql")),
    (3, include_str!("../../../../schemas/cql/003_threads.cql")),
];
/// How long one statement that changes the schema may take: servers agree on it among themselves.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a run of [`apply`] or [`check`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schema {
    /// The version that stands in the cluster now; 0: none.
    pub version: i32,
    /// The version that this release works with.
    pub known: i32,
    /// Whether the server is ScyllaDB.
    pub scylla: bool,
}

/// The keyspace beside it whose rows are changed by lightweight transactions.
pub(super) fn control(keyspace: &str) -> String {
    format!("{keyspace}_control")
}

fn known() -> i32 {
    VERSIONS.last().map_or(0, |(version, _)| *version)
}

/// Creates what is missing: keyspaces with the address's `replication` (a factor for every data centre, or `DC:N,DC:N`) and
/// every version that was not applied yet. Refuses a cluster whose schema is of a newer release.
pub async fn apply(address: &Address, limits: &StoreLimits) -> Result<Schema, OpenError> {
    let session = connect(address, limits).await?;
    let failed = |what: &str, fault: Fault| fault.at(address, |why| format!("{what} failed: {why}"));
    let scylla = is_scylla(&session).await.map_err(|fault| failed("asking for the kind of server", fault))?;
    let keyspace = &address.path;
    let control = control(keyspace);
    let found = version(&session, keyspace).await.map_err(|fault| failed("reading the schema's version", fault))?;
    newer(address, found)?;
    let replication = replication(&session, address)?;
    for (name, tablets) in [(keyspace.as_str(), ""), (control.as_str(), " AND tablets = {'enabled': false}")] {
        let tablets = if scylla { tablets } else { "" };
        run(&session, &format!("CREATE KEYSPACE IF NOT EXISTS {name} WITH replication = {replication}{tablets}"))
            .await
            .map_err(|fault| failed("creating the keyspace", fault))?;
    }
    run(
        &session,
        &format!(
            "CREATE TABLE IF NOT EXISTS {control}.schema_versions (one int, version int, PRIMARY KEY (one, version))"
        ),
    )
    .await
    .map_err(|fault| failed("creating the table of versions", fault))?;
    for (version, text) in VERSIONS.iter().filter(|(version, _)| *version > found) {
        for statement in statements(text, keyspace) {
            run(&session, &statement).await.map_err(|fault| failed(&format!("version {version}"), fault))?;
        }
        run(&session, &format!("INSERT INTO {control}.schema_versions (one, version) VALUES (0, {version})"))
            .await
            .map_err(|fault| failed("writing the schema's version", fault))?;
    }
    Ok(Schema { version: known().max(found), known: known(), scylla })
}

/// Compares the cluster's schema with what this release works with; refuses one that is missing, older or newer, saying what
/// to do.
pub async fn check(address: &Address, limits: &StoreLimits) -> Result<Schema, OpenError> {
    let session = connect(address, limits).await?;
    checked(&session, address).await
}

pub(super) async fn checked(session: &Session, address: &Address) -> Result<Schema, OpenError> {
    let wrong = |why: String| OpenError::Address(format!("`{address}`: {why}"));
    let unread = |what: &str, fault: Fault| fault.at(address, |why| format!("{what} cannot be read: {why}"));
    let found = version(session, &address.path).await.map_err(|fault| unread("the schema's version", fault))?;
    newer(address, found)?;
    if found < known() {
        let has = if found == 0 { "has no tables of ours".into() } else { format!("has schema version {found}") };
        return Err(wrong(format!(
            "the keyspace {} {has} and this release needs version {}: run `esh3ar schema apply`",
            address.path,
            known()
        )));
    }
    let scylla = is_scylla(session).await.map_err(|fault| unread("the kind of server", fault))?;
    Ok(Schema { version: found, known: known(), scylla })
}

fn newer(address: &Address, found: i32) -> Result<(), OpenError> {
    if found <= known() {
        return Ok(());
    }
    Err(OpenError::Address(format!(
        "`{address}`: the keyspace {} has schema version {found} and this release knows version {}: run the newer release",
        address.path,
        known()
    )))
}

/// The replication as CQL writes it.
fn replication(session: &Session, address: &Address) -> Result<String, OpenError> {
    let wrong = |why: &str| OpenError::Address(format!("`{address}`: {why}"));
    let text = address.options.get("replication").map_or("3", String::as_str);
    let number = |text: &str| text.parse::<u8>().ok().filter(|n| (1..=9).contains(n));
    let centres: Vec<(String, u8)> = if let Some(factor) = number(text) {
        let state = session.get_cluster_state();
        let mut centres: Vec<String> =
            state.get_nodes_info().iter().filter_map(|node| node.datacenter.clone()).collect();
        centres.sort();
        centres.dedup();
        centres.into_iter().map(|centre| (centre, factor)).collect()
    } else {
        let pairs = text.split(',').map(|pair| {
            let (centre, factor) = pair.split_once(':')?;
            let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            Some((centre.to_owned(), number(factor)?)).filter(|(name, _)| !name.is_empty() && name.chars().all(fine))
        });
        pairs.collect::<Option<_>>().ok_or_else(|| wrong("`replication` is a number from 1 to 9, or DC:N,DC:N"))?
    };
    if centres.is_empty() {
        return Err(wrong("the cluster names no data centre: give `replication=DC:N`"));
    }
    let centres: Vec<_> = centres.into_iter().map(|(name, factor)| format!("'{name}': {factor}")).collect();
    Ok(format!("{{'class': 'NetworkTopologyStrategy', {}}}", centres.join(", ")))
}

/// The statements of a version, for a keyspace.
fn statements(text: &str, keyspace: &str) -> Vec<String> {
    let lines: Vec<_> = text.lines().filter(|line| !line.trim_start().starts_with("--")).collect();
    let text = lines
        .join("\n")
        .replace("KEYSPACE.", &format!("{keyspace}."))
        .replace("CONTROL.", &format!("{}.", control(keyspace)));
    text.split(';').map(str::trim).filter(|statement| !statement.is_empty()).map(str::to_owned).collect()
}

async fn run(session: &Session, text: &str) -> Result<(), Fault> {
    let mut statement = scylla::statement::unprepared::Statement::new(text);
    statement.set_is_idempotent(true);
    statement.set_request_timeout(Some(PATIENCE));
    Ok(session.query_unpaged(statement, ()).await.map(drop)?)
}

/// The version that stands there; 0 where nothing does.
async fn version(session: &Session, keyspace: &str) -> Result<i32, Fault> {
    let there =
        "SELECT table_name FROM system_schema.tables WHERE keyspace_name = ? AND table_name = 'schema_versions'";
    if first::<(String,)>(session, there, (control(keyspace),)).await?.is_none() {
        return Ok(0);
    }
    let last = format!(
        "SELECT version FROM {}.schema_versions WHERE one = 0 ORDER BY version DESC LIMIT 1",
        control(keyspace)
    );
    Ok(first::<(i32,)>(session, &last, ()).await?.map_or(0, |(version,)| version))
}

/// Only ScyllaDB has this table.
async fn is_scylla(session: &Session) -> Result<bool, Fault> {
    let there = "SELECT table_name FROM system_schema.tables WHERE keyspace_name = 'system_schema' AND table_name = 'scylla_tables'";
    Ok(first::<(String,)>(session, there, ()).await?.is_some())
}

async fn first<R>(
    session: &Session,
    text: &str,
    values: impl scylla::serialize::row::SerializeRow,
) -> Result<Option<R>, Fault>
where
    R: for<'frame, 'metadata> scylla::deserialize::row::DeserializeRow<'frame, 'metadata>,
{
    let mut statement = scylla::statement::unprepared::Statement::new(text);
    statement.set_is_idempotent(true);
    let found = session.query_unpaged(statement, values).await?;
    let found = found.into_rows_result().map_err(Fault::answer)?;
    found.maybe_first_row::<R>().map_err(Fault::answer)
}

#[cfg(test)]
#[path = "schema/tests.rs"]
mod tests;
