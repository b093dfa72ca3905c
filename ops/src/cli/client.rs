//! How a command finds its server and its token: by what it was told, else by the local data folder, where a server leaves its
//! address and keeps its signing key.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use ingest::auth::{NewToken, Who};
use reqwest::{Method, Response, StatusCode};
use schemas::{Clock, Problem, Tenant};
use serde::de::DeserializeOwned;

use crate::{clock::SystemClock, compose::Role, exit::Failure, folder};

/// How long a token lasts that a command makes for itself.
const TOKEN_MS: u64 = 24 * 3_600_000;
/// How long a server may take to take a connection.
const CONNECT: Duration = Duration::from_secs(5);

/// Whoever left word in a folder.
pub(super) const EVERY_ROLE: [Role; 5] = [Role::All, Role::Admin, Role::Ingest, Role::Gateway, Role::Pipeline];
/// Who takes messages and answers reads.
const HTTP: [Role; 3] = [Role::All, Role::Ingest, Role::Gateway];
/// Who holds sockets.
const SOCKETS: [Role; 2] = [Role::All, Role::Gateway];

/// Where the public door is, and by whom it is entered.
#[derive(Debug, Args, Clone)]
pub(super) struct ClientArgs {
    /// The server, e.g. https://messages.example.com. Without it: the one of the data folder.
    #[arg(long, env = "ESH3AR_URL", value_name = "URL")]
    pub(super) url: Option<String>,
    /// The token or API key. Without it: one made from the data folder's key.
    #[arg(long, env = "ESH3AR_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    pub(super) token: Option<String>,
    /// The data folder of the local server.
    #[arg(long, default_value = "./esh3ar-data", env = "ESH3AR_DATA", value_name = "DIR")]
    pub(super) data: PathBuf,
    /// The business, for a token made here.
    #[arg(long, default_value = "acme", env = "ESH3AR_TENANT")]
    pub(super) tenant: Tenant,
}

/// Where the administrators' door is.
#[derive(Debug, Args, Clone)]
pub(super) struct AdminArgs {
    /// The administrators' listener, e.g. http://127.0.0.1:8081. Without it: the one of the data folder.
    #[arg(long = "admin-url", env = "ESH3AR_ADMIN_URL", value_name = "URL")]
    pub(super) url: Option<String>,
    /// The token. Without it: one made from the data folder's key.
    #[arg(long, env = "ESH3AR_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    pub(super) token: Option<String>,
    /// The data folder of the local server.
    #[arg(long, default_value = "./esh3ar-data", env = "ESH3AR_DATA", value_name = "DIR")]
    pub(super) data: PathBuf,
    /// The tenant of a token made here. The default is the operators', who see every tenant.
    #[arg(long, default_value = "operators", value_name = "TENANT")]
    pub(super) as_tenant: Tenant,
}

/// A server that can be asked.
#[derive(Clone)]
pub(super) struct Server {
    http: reqwest::Client,
    /// Without a slash at its end.
    pub(super) url: String,
    /// What it is entered with.
    pub(super) token: String,
}

impl ClientArgs {
    /// Finds the server, as this caller.
    pub(super) fn find(&self, who: Who) -> Result<Server, Failure> {
        self.find_at(who, &HTTP)
    }

    /// Finds a server that holds sockets, as this caller.
    pub(super) fn find_sockets(&self, who: Who) -> Result<Server, Failure> {
        self.find_at(who, &SOCKETS)
    }

    fn find_at(&self, who: Who, roles: &[Role]) -> Result<Server, Failure> {
        let url = match &self.url {
            Some(url) => url.clone(),
            None => local(&self.data, roles, |e| e.listen)?,
        };
        Server::new(&url, token(self.token.as_deref(), &self.data, &self.tenant, who)?)
    }
}

impl AdminArgs {
    /// Finds the administrators' door.
    pub(super) fn find(&self) -> Result<Server, Failure> {
        let url = match &self.url {
            Some(url) => url.clone(),
            None => local(&self.data, &EVERY_ROLE, |e| e.admin)?,
        };
        Server::new(&url, token(self.token.as_deref(), &self.data, &self.as_tenant, Who::Admin)?)
    }
}

fn local(data: &Path, roles: &[Role], which: impl Fn(folder::Endpoint) -> String) -> Result<String, Failure> {
    let endpoint = folder::read_endpoint(data, roles).ok_or_else(|| {
        Failure::unreachable(format!(
            "no server runs on {}: start one with `esh3ar up`, or name another by --url or --data",
            data.display()
        ))
    })?;
    Ok(format!("http://{}", which(endpoint)))
}

fn token(given: Option<&str>, data: &Path, tenant: &Tenant, who: Who) -> Result<String, Failure> {
    if let Some(token) = given {
        return Ok(token.to_owned());
    }
    let key = folder::read_key(data)?.ok_or_else(|| {
        Failure::usage(format!("there is no key in {} to make a token from: give one by --token", data.display()))
    })?;
    let can = super::token::usual(&who);
    let new = NewToken { tenant: tenant.clone(), who, can, ttl_ms: TOKEN_MS };
    ingest::auth::mint(&key, &new, SystemClock::new().wall()).map_err(|why| Failure::failed(why.to_string()))
}

impl Server {
    fn new(url: &str, token: String) -> Result<Self, Failure> {
        let parsed = reqwest::Url::parse(url)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
            .ok_or_else(|| Failure::usage(format!("{url} is not an address: write http://HOST:PORT")))?;
        let mut http = reqwest::Client::builder().connect_timeout(CONNECT);
        let is_here = matches!(parsed.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
        if is_here {
            // A proxy of the environment cannot know what listens on this machine.
            http = http.no_proxy();
        }
        let http = http.build().map_err(|why| Failure::failed(format!("no client could be made: {why}")))?;
        Ok(Self { http, url: url.trim_end_matches('/').to_owned(), token })
    }

    /// Asks; an answer of refusal is a failure with the server's words.
    pub(super) async fn ask(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, String)],
        body: Option<&serde_json::Value>,
    ) -> Result<Response, Failure> {
        let mut request = self.http.request(method, format!("{}{path}", self.url)).bearer_auth(&self.token);
        if !query.is_empty() {
            request = request.query(query);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = request.send().await.map_err(|why| self.unreachable(&why))?;
        if answer.status().is_success() { Ok(answer) } else { Err(refusal(answer).await) }
    }

    /// Asks and reads the answer.
    pub(super) async fn json<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, String)],
        body: Option<&serde_json::Value>,
    ) -> Result<T, Failure> {
        let answer = self.ask(method, path, query, body).await?;
        let text = answer.text().await.map_err(|why| self.unreachable(&why))?;
        serde_json::from_str(&text).map_err(|why| {
            Failure::failed(format!("{} answered what this release does not understand: {why}", self.url))
        })
    }

    fn unreachable(&self, why: &reqwest::Error) -> Failure {
        let cause = std::iter::successors(std::error::Error::source(why), |e| e.source()).last();
        let cause = cause.map_or_else(|| "no answer".to_owned(), ToString::to_string);
        Failure::unreachable(format!("{} cannot be reached ({cause}): is `esh3ar up` running there?", self.url))
    }
}

async fn refusal(answer: Response) -> Failure {
    let status = answer.status();
    let text = answer.text().await.unwrap_or_default();
    match serde_json::from_str::<Problem>(&text) {
        Ok(problem) => Failure::refused(problem),
        Err(_) if status == StatusCode::NOT_FOUND => {
            Failure::unreachable("what listens there is not Esh3ar, or another release of it".to_owned())
        }
        Err(_) => Failure::failed(format!("the server answered {status} without a reason")),
    }
}
