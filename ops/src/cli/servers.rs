//! `esh3ar topics create|check` and `esh3ar schema apply|check`: what the servers need before the first start, and whether it
//! is there. What is made is made once; to make it again changes nothing.

use clap::{Args, Subcommand};
use serde_json::json;
use stores::{
    OpenError,
    setup::{self, Said},
};

use super::{ConfigArgs, print};
use crate::{compose, exit::Failure};

pub(super) const TOPICS_EXAMPLE: &str = "Examples:
  esh3ar topics create --set stores.log=kafka://kafka-1:9092,kafka-2:9092,kafka-3:9092
  esh3ar topics create --ingress acme --ingress zain        also the topics that businesses produce to
  esh3ar topics check                                       exit code 1 where something is missing or wrong";

pub(super) const SCHEMA_EXAMPLE: &str = "Examples:
  esh3ar schema apply --set stores.history=scylla://db-1:9042,db-2:9042/esh3ar
  esh3ar schema check                                       exit code 1 where it is not the one of this release";

/// What can be done with topics.
#[derive(Debug, Subcommand)]
pub enum TopicsCommand {
    /// Make the topics that are missing. What is there is left as it is.
    Create(TopicsArgs),
    /// Say whether all are there and as they have to be.
    Check(TopicsArgs),
}

/// Which topics.
#[derive(Debug, Args)]
pub struct TopicsArgs {
    /// A tenant that produces to a topic of its own, `ingress.TENANT`. Can be repeated.
    #[arg(long, value_name = "TENANT")]
    ingress: Vec<schemas::Tenant>,
    #[command(flatten)]
    config: ConfigArgs,
}

/// What can be done with the schema.
#[derive(Debug, Subcommand)]
pub enum SchemaCommand {
    /// Make the keyspaces and tables that are missing, and bring older ones up to this release.
    Apply(SchemaArgs),
    /// Say whether it is the one that this release needs.
    Check(SchemaArgs),
}

/// Where it is.
#[derive(Debug, Args)]
pub struct SchemaArgs {
    #[command(flatten)]
    config: ConfigArgs,
}

/// Does it.
pub(super) async fn topics(command: TopicsCommand, json: bool) -> Result<(), Failure> {
    let (args, create) = match command {
        TopicsCommand::Create(args) => (args, true),
        TopicsCommand::Check(args) => (args, false),
    };
    let settings = compose::settings(&args.config.load(&[])?.config)?;
    let address = settings.places.log.ok_or_else(|| {
        Failure::usage("topics stand in Kafka, and `stores.log` names none: --set stores.log=kafka://HOST:PORT")
    })?;
    let tenants: Vec<String> = args.ingress.iter().map(ToString::to_string).collect();
    let bar = print::spinner("asking Kafka", json);
    let said = setup::topics(&address, &settings.limits, &tenants, create).await;
    bar.finish_and_clear();
    tell(said, json)
}

/// Does it.
pub(super) async fn schema(command: SchemaCommand, json: bool) -> Result<(), Failure> {
    let (args, apply) = match command {
        SchemaCommand::Apply(args) => (args, true),
        SchemaCommand::Check(args) => (args, false),
    };
    let settings = compose::settings(&args.config.load(&[])?.config)?;
    let address = settings.places.history.ok_or_else(|| {
        Failure::usage(
            "a schema stands in ScyllaDB, and `stores.history` names none: --set stores.history=scylla://HOST:PORT/KEYSPACE",
        )
    })?;
    let bar = print::spinner("asking the history", json);
    let said = setup::schema(&address, &settings.limits, apply).await;
    bar.finish_and_clear();
    tell(said, json)
}

/// A line for each thing that was found or made.
fn tell(said: Result<Said, OpenError>, json: bool) -> Result<(), Failure> {
    let Said { fine, wrong } = said.map_err(|why| match why {
        OpenError::NotBuilt { .. } => Failure::usage(why.to_string()),
        why if why.may_pass() => Failure::unreachable(why.to_string()),
        why => Failure::failed(why.to_string()),
    })?;
    if json {
        print::json(&json!({ "ok": wrong.is_empty(), "said": fine, "wrong": wrong }))?;
    } else {
        fine.into_iter().try_for_each(print::line)?;
    }
    if wrong.is_empty() { Ok(()) } else { Err(Failure::failed(wrong.join("\n"))) }
}
