//! What a person or a tool may read of the service itself: a first page, the OpenAPI description, and a page for each kind of
//! problem, under the address that its `type` names.

use std::sync::OnceLock;

use axum::{
    Router,
    extract::Path,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use ingest::http::Refusal;
use schemas::{Code, Problem};

include!(concat!(env!("OUT_DIR"), "/documents.rs"));

/// The routes of the public listener that tell about the service.
pub fn routes() -> Router {
    Router::new()
        .route("/", get(home))
        .route("/openapi.json", get(openapi))
        .route("/problems", get(problems))
        .route("/problems/{slug}", get(problem))
}

async fn home() -> Response {
    let text = concat!(
        "Esh3ar ",
        env!("CARGO_PKG_VERSION"),
        "\nMessages from businesses to people's phones, none lost.\n\n",
        "  POST /v1/messages            send one message: {\"to\": \"+962790000001\", \"content\": \"Hello\"}\n",
        "  POST /v1/messages/batch      send many, one JSON object a line\n",
        "  POST /v1/broadcasts          one content to many\n",
        "  GET  /v1/messages/{id}       where it stands; /trace: every stage\n",
        "  GET  /v1/ws                  the socket of a phone or a business user\n",
        "  GET  /v1/inbox               the same without a socket\n",
        "  GET  /v1/events              the feed of status changes\n\n",
        "  GET  /openapi.json           every route, exactly\n",
        "  GET  /problems               every refusal, explained\n",
        "  GET  /health/ready           whether it takes work\n\n",
        "Requests carry `Authorization: Bearer TOKEN`. On the server's machine:\n\n",
        "  esh3ar token --tenant acme --server\n",
        "  esh3ar listen --user +962790000001\n",
        "  esh3ar send --to +962790000001 --text Hello\n",
    );
    plain("text/plain; charset=utf-8", text)
}

fn plain(content_type: &'static str, text: &'static str) -> Response {
    ([(header::CONTENT_TYPE, content_type)], text).into_response()
}

/// The OpenAPI description as JSON: written as YAML, turned once.
pub fn openapi_json() -> &'static str {
    static JSON: OnceLock<String> = OnceLock::new();
    JSON.get_or_init(|| match serde_yaml_ng::from_str::<serde_json::Value>(OPENAPI) {
        Ok(value) => value.to_string(),
        Err(why) => {
            tracing::error!(%why, "the OpenAPI description cannot be read");
            "{}".to_owned()
        }
    })
}

async fn openapi() -> Response {
    plain("application/json", openapi_json())
}

async fn problems() -> Response {
    let lines = Code::ALL.iter().map(|code| format!("{} /problems/{}  {}\n", code.status(), code.slug(), code.title()));
    ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], lines.collect::<String>()).into_response()
}

/// The page of one kind of problem, in Markdown.
pub fn problem_page(slug: &str) -> Option<String> {
    let code = Code::parse(slug)?;
    let page = embedded(slug).map(str::to_owned);
    Some(page.unwrap_or_else(|| format!("# {}\n\n`{slug}`, HTTP status {}.\n", code.title(), code.status())))
}

async fn problem(Path(slug): Path<String>, headers: HeaderMap) -> Response {
    let Some(page) = problem_page(&slug) else {
        let detail = "there is no such kind of problem; /problems lists them all";
        return Refusal(Problem::new(Code::NotFound, detail)).into_response();
    };
    // Some browsers save Markdown instead of showing it; Markdown is made to be read as plain text.
    let is_browser = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).is_some_and(|v| v.contains("text/html"));
    let content_type = if is_browser { "text/plain; charset=utf-8" } else { "text/markdown; charset=utf-8" };
    (StatusCode::OK, [(header::CONTENT_TYPE, content_type)], page).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_openapi_description_is_json_of_version_3_1() {
        let value: serde_json::Value = serde_json::from_str(openapi_json()).unwrap();
        assert!(value["openapi"].as_str().is_some_and(|v| v.starts_with("3.1")), "{value}");
    }

    #[test]
    fn every_problem_has_a_page() {
        for code in Code::ALL {
            assert!(problem_page(code.slug()).is_some_and(|page| page.contains(code.slug())), "{}", code.slug());
        }
        assert_eq!(problem_page("no-such"), None);
    }
}
