//! `esh3ar books`: that nothing accepted was lost; asked of a running server, drawn up from the folder of a stopped one.

use clap::Args;
use pipeline::books::{Account, Books};
use reqwest::Method;
use serde_json::Value;

use super::{client::AdminArgs, print, stopped};
use crate::{admin::node::told, exit::Failure};

pub(super) const EXAMPLE: &str = "Examples:
  esh3ar books
  esh3ar books --data /var/lib/esh3ar --json        of a stopped server too

Exit code 1 when they do not balance; missing messages are listed by id.";

/// Arguments of `books`.
#[derive(Debug, Args)]
pub struct BooksArgs {
    #[command(flatten)]
    admin: AdminArgs,
}

/// Shows them.
pub(super) async fn run(args: BooksArgs, json: bool) -> Result<(), Failure> {
    let bar = print::spinner("drawing up the books", json);
    let drawn = Box::pin(draw(&args.admin)).await;
    bar.finish_and_clear();
    let value = drawn?;
    if json {
        print::json(&value)?;
    } else {
        show(&value)?;
    }
    if value["balanced"] == Value::Bool(true) {
        return Ok(());
    }
    Err(Failure::failed("the books do not balance: the residue names messages that were accepted and are not known"))
}

async fn draw(args: &AdminArgs) -> Result<Value, Failure> {
    if !stopped::is_stopped(args).await {
        return args.find()?.json(Method::GET, "/admin/v1/books", &[], None).await;
    }
    let stores = stopped::open(&args.data).await?;
    let books = pipeline::books::audit(&*stores.log, &*stores.history).await;
    let books = books.map_err(|why| Failure::failed(format!("the books cannot be drawn up: {why}")))?;
    stores.close().await;
    Ok(told(&books))
}

fn show(value: &Value) -> Result<(), Failure> {
    let mut bare = value.clone();
    if let Some(map) = bare.as_object_mut() {
        map.remove("balanced");
    }
    let books: Books = serde_json::from_value(bare)
        .map_err(|why| Failure::failed(format!("the server's books are of another release: {why}")))?;
    let mut table = print::table(&[
        "tenant",
        "accepted",
        "unrecorded",
        "pending",
        "sent",
        "delivered",
        "read",
        "failed",
        "residue",
        "repeats",
    ]);
    let row = |name: String, a: &Account| {
        let counts = [a.accepted, a.unrecorded, a.pending, a.sent, a.delivered, a.read, a.failed, a.residue, a.repeats];
        std::iter::once(name).chain(counts.map(|n| n.to_string())).collect::<Vec<_>>()
    };
    for (tenant, account) in &books.tenants {
        table.add_row(row(tenant.to_string(), account));
    }
    table.add_row(row("all".to_owned(), &books.total));
    print::line(table.to_string())?;
    for residue in &books.residue {
        print::line(format!("missing: {} of {} in partition {}", residue.id, residue.tenant, residue.partition))?;
    }
    print::line(if books.balanced() { "The books balance." } else { "The books do NOT balance." })
}
