//! The folder of a server that does not run, opened for looking.

use std::{path::Path, sync::Arc};

use stores::{OpenError, Stores};

use super::client::{AdminArgs, EVERY_ROLE};
use crate::{clock::SystemClock, compose, config::Config, exit::Failure, folder};

/// Whether no server runs on the folder a command was given: none left its address there, or nobody listens at it.
pub(super) async fn is_stopped(args: &AdminArgs) -> bool {
    if args.url.is_some() {
        return false;
    }
    match folder::read_endpoint(&args.data, &EVERY_ROLE) {
        None => true,
        Some(endpoint) => tokio::net::TcpStream::connect(&endpoint.admin).await.is_err(),
    }
}

/// Opens it. Needs the folder for itself: a server that starts meanwhile is refused.
pub(super) async fn open(data: &Path) -> Result<Stores, Failure> {
    if !data.join("format").exists() {
        return Err(Failure::unreachable(format!(
            "no server runs on {} and no data is there: name a folder by --data or a server by --admin-url",
            data.display()
        )));
    }
    let config = Config { data: data.to_owned(), ..Config::default() };
    match open_with(compose::settings(&config)?).await {
        // It was made with another number of partitions, and nobody said which to this command.
        Err(OpenError::Partitions { found, .. }) => {
            let mut settings = compose::settings(&config)?;
            settings.limits.partitions = found;
            open_with(settings).await
        }
        opened => opened,
    }
    .map_err(|why| Failure::unreachable(why.to_string()))
}

async fn open_with(settings: stores::Settings) -> Result<Stores, OpenError> {
    Stores::open(settings, Arc::new(SystemClock::new())).await
}
