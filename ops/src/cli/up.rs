//! `esh3ar up`, and each role alone: a process that runs until it is told to end.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::{ConfigArgs, print, signals::Signals};
use crate::{
    compose::{self, Role},
    config::{Config, check},
    exit::Failure,
    telemetry,
};

pub(super) const EXAMPLE: &str = "Examples:
  esh3ar up
  esh3ar up --data /var/lib/esh3ar --listen 0.0.0.0:8080 --config /etc/esh3ar.toml
  esh3ar up --json --listen 127.0.0.1:0 --admin 127.0.0.1:0        one line when it is ready, for scripts

It ends on SIGTERM or SIGINT after finishing what is in flight; a second signal ends it at once. It ends with exit code 1 when
its store fails, 2 when the configuration is wrong, 3 when a port is taken, the data folder cannot be used or a server does not
answer.";

pub(super) const ROLE_EXAMPLE: &str = "Examples (addresses also by --config or the environment, e.g. ESH3AR_STORES__LOG):
  esh3ar topics create && esh3ar schema apply                      once
  esh3ar ingest    --listen 0.0.0.0:8080 --admin 0.0.0.0:8081      on as many machines as you like
  esh3ar pipeline  --admin 0.0.0.0:8081
  esh3ar gateway   --listen 0.0.0.0:8080 --admin 0.0.0.0:8081
  esh3ar admin     --admin 0.0.0.0:8081

Roles meet at the servers that stores.log, stores.history and stores.presence name. Each ends on SIGTERM or SIGINT after handing
over what it has; a second signal ends it at once. Exit codes are those of `esh3ar up`.";

/// Arguments of `up` and of each role.
#[derive(Debug, Args)]
pub struct UpArgs {
    /// The folder that keeps what no server keeps [default: ./esh3ar-data].
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Where clients connect [default: 127.0.0.1:8080].
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<String>,
    /// Where administrators connect [default: 127.0.0.1:8081].
    #[arg(long, value_name = "HOST:PORT")]
    admin: Option<String>,
    #[command(flatten)]
    config: ConfigArgs,
}

impl UpArgs {
    fn config(&self, role: Role) -> Result<Config, Failure> {
        let mut flags = Vec::new();
        if let Some(data) = &self.data {
            let text = data.to_str().ok_or_else(|| Failure::usage("--data must be a name in UTF-8"))?;
            flags.push(("data", text.to_owned(), "--data"));
        }
        if let Some(listen) = &self.listen {
            if !role.is_public() {
                let role = role.word();
                return Err(Failure::usage(format!("`esh3ar {role}` has no door for clients: leave out --listen")));
            }
            flags.push(("listen", listen.clone(), "--listen"));
        }
        if let Some(admin) = &self.admin {
            flags.push(("admin", admin.clone(), "--admin"));
        }
        Ok(self.config.load(&flags)?.config)
    }
}

/// Runs it.
pub(super) async fn run(role: Role, args: UpArgs, json: bool) -> Result<(), Failure> {
    let mut config = args.config(role)?;
    compose::resolve(&mut config)?;
    role.check(&config)?;
    telemetry::logs(&config.log)?;
    for sentence in check::advice(&config) {
        tracing::warn!("{sentence}");
    }
    let metrics = telemetry::metrics()?;
    let mut signals = Signals::listen()?;
    let lost = async || {
        let failure = compose::Service::lost().await;
        tracing::error!("{failure}");
        failure
    };
    let starting = compose::start(role, config.clone(), metrics);
    let service = tokio::select! {
        service = starting => service?,
        failure = lost() => return Err(failure),
        () = signals.next() => return Ok(()),
    };
    // Whoever started it may have closed the pipe; that is no reason to end.
    let _ = ready(&service, &config, json);
    tracing::info!(role = role.word(), listen = ?service.listen(), admin = %service.admin(), "ready");
    if let Err(failure) = service.ended(signals.next()).await {
        tracing::error!("{failure}");
        service.abandon().await;
        return Err(failure);
    }
    tracing::info!("ending: finishing what is in flight");
    tokio::select! {
        clean = service.close() => {
            if clean {
                tracing::info!("ended");
            } else {
                tracing::warn!("ended before everything was finished: the rest is done after the next start, or elsewhere");
            }
        }
        // What is waited for may have been its to finish.
        failure = lost() => return Err(failure),
        () = signals.next() => tracing::warn!("ended at once by a second signal: the rest is done after the next start"),
    }
    Ok(())
}

fn ready(service: &compose::Service, config: &Config, json: bool) -> Result<(), Failure> {
    let (role, listen, admin) = (service.role(), service.listen(), service.admin());
    let data = config.data.display().to_string();
    if json {
        let ready = json!({ "ready": true, "role": role.word(), "listen": listen, "admin": admin, "data": data });
        return print::json(&ready);
    }
    let listens = listen.map(|listen| format!("  listens on      http://{listen}\n")).unwrap_or_default();
    if role != Role::All {
        return print::line(format!("Esh3ar {} is ready.\n{listens}  administrators  http://{admin}\n", role.word()));
    }
    let flag = if data == "./esh3ar-data" { String::new() } else { format!(" --data {data}") };
    print::line(format!(
        "Esh3ar is ready.\n{listens}  administrators  http://{admin}\n  keeps its data  {data}\n\n\
         Next, in another terminal:\n  esh3ar listen --user +962790000001{flag}\n  esh3ar send --to +962790000001 --text Hello{flag}\n"
    ))
}
