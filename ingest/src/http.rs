//! HTTP at the edge: refusals as `application/problem+json` (RFC 9457), bodies read within their bounds, headers parsed, the
//! extractors every route shares. Limits are enforced before memory is spent: a declared length is checked before the first
//! byte is read, an undeclared one is counted as it comes.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::{FromRef, FromRequestParts},
    response::{IntoResponse, Response},
};
use bytes::{Bytes, BytesMut};
use futures::FutureExt as _;
use http::{HeaderMap, HeaderValue, StatusCode, header, request};
use http_body_util::BodyExt as _;
use schemas::{Code, Problem};

use crate::auth::{self, Auth, Caller};

/// The media type of refusals.
pub const PROBLEM_JSON: &str = "application/problem+json";
/// The media type of batches and of their answers.
pub const NDJSON: &str = "application/x-ndjson";

/// A refusal as an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal(pub Problem);

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Self(problem)
    }
}

impl From<schemas::port::PortError> for Refusal {
    fn from(error: schemas::port::PortError) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let Self(problem) = self;
        metrics::counter!("esh3ar_refused_total", "code" => problem.code.slug()).increment(1);
        let status = StatusCode::from_u16(problem.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_vec(&problem).unwrap_or_default();
        let mut response = (status, [(header::CONTENT_TYPE, PROBLEM_JSON)], body).into_response();
        let headers = response.headers_mut();
        if let Some(ms) = problem.retry_after_ms {
            headers.insert(header::RETRY_AFTER, whole_seconds(ms).into());
        }
        match status {
            StatusCode::UNAUTHORIZED => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"esh3ar\""));
            }
            // The rest of such a body is not read, so the connection cannot carry another request.
            StatusCode::PAYLOAD_TOO_LARGE | StatusCode::REQUEST_TIMEOUT => {
                headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            _ => {}
        }
        response
    }
}

/// Seconds of `Retry-After`: rounded up, so that nobody comes back early.
pub fn whole_seconds(ms: u64) -> u64 {
    ms.div_ceil(1_000).max(1)
}

/// The answer to a path that no route has. For [`Router::fallback`].
pub async fn not_found(uri: http::Uri) -> Refusal {
    Refusal(Problem::new(
        Code::NotFound,
        format!("there is nothing at {}; /openapi.json lists what there is", uri.path()),
    ))
}

/// The answer to a method that a route does not take. For [`Router::method_not_allowed_fallback`].
pub async fn method_not_allowed(method: http::Method, uri: http::Uri) -> Refusal {
    Refusal(Problem::new(Code::MethodNotAllowed, format!("{} does not take {method}", uri.path())))
}

/// Gives a whole router the refusals above for what it does not know.
pub fn with_fallbacks<S: Clone + Send + Sync + 'static>(router: Router<S>) -> Router<S> {
    router.fallback(not_found).method_not_allowed_fallback(method_not_allowed)
}

/// The caller of a request. Any state that [`Auth`] can be taken from may use it.
pub struct Authed(pub Arc<Caller>);

impl<S> FromRequestParts<S> for Authed
where
    Arc<Auth>: FromRef<S>,
    S: Send + Sync,
{
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut request::Parts, state: &S) -> Result<Self, Refusal> {
        caller(&Arc::from_ref(state), &parts.headers).map(Self)
    }
}

/// The caller of a request with these headers.
pub fn caller(auth: &Auth, headers: &HeaderMap) -> Result<Arc<Caller>, Refusal> {
    let token = auth::bearer(headers).ok_or_else(|| {
        let how = "send `Authorization: Bearer TOKEN` (`esh3ar token` makes one), or an API key in `X-Api-Key`";
        Problem::new(Code::Unauthenticated, how).at("Authorization")
    })?;
    Ok(auth.verify(token)?)
}

/// How long a body may take.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// The whole of it, ms.
    pub whole_ms: u64,
    /// Between two pieces of it, ms.
    pub idle_ms: u64,
}

impl Patience {
    /// That of one JSON body.
    pub fn of(limits: &schemas::limits::DoorLimits) -> Self {
        Self { whole_ms: limits.request_ms, idle_ms: limits.idle_body_ms }
    }
}

fn too_large(max: usize) -> Problem {
    Problem::new(Code::TooLarge, format!("the body is larger than {max} bytes"))
}

/// Refuses a body whose declared length is over `max`, before any of it is read.
pub fn check_length(headers: &HeaderMap, max: usize) -> Result<(), Problem> {
    let declared =
        headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()).and_then(|v| v.parse::<u64>().ok());
    match declared {
        Some(length) if length > max as u64 => Err(too_large(max)),
        _ => Ok(()),
    }
}

/// The next piece of a body; `None` at its end. A body that stands still longer than `idle_ms`, or breaks off, is refused.
pub async fn next_piece(body: &mut Body, idle_ms: u64) -> Result<Option<Bytes>, Problem> {
    loop {
        // Most bodies have arrived with their head: a timer is only set where there is something to wait for.
        let frame = match body.frame().now_or_never() {
            Some(frame) => frame,
            None => tokio::time::timeout(Duration::from_millis(idle_ms), body.frame()).await.map_err(|_| {
                Problem::new(Code::RequestTimeout, format!("nothing of the body came for {idle_ms} ms"))
            })?,
        };
        match frame {
            None => return Ok(None),
            Some(Err(_)) => return Err(Problem::new(Code::RequestTimeout, "the body broke off before its end")),
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) if !data.is_empty() => return Ok(Some(data)),
                _ => {}
            },
        }
    }
}

/// Reads a body of at most `max` bytes.
pub async fn read_body(headers: &HeaderMap, mut body: Body, max: usize, patience: Patience) -> Result<Bytes, Problem> {
    check_length(headers, max)?;
    let read = async {
        let Some(first) = next_piece(&mut body, patience.idle_ms).await? else { return Ok(Bytes::new()) };
        if first.len() > max {
            return Err(too_large(max));
        }
        let Some(second) = next_piece(&mut body, patience.idle_ms).await? else { return Ok(first) };
        let mut all = BytesMut::from(first);
        let mut piece = second;
        loop {
            if all.len() + piece.len() > max {
                return Err(too_large(max));
            }
            all.extend_from_slice(&piece);
            match next_piece(&mut body, patience.idle_ms).await? {
                Some(next) => piece = next,
                None => return Ok(all.freeze()),
            }
        }
    };
    let mut read = std::pin::pin!(read);
    match read.as_mut().now_or_never() {
        Some(done) => done,
        None => tokio::time::timeout(Duration::from_millis(patience.whole_ms), read).await.unwrap_or_else(|_| {
            let detail = format!("the body took longer than {} ms to arrive", patience.whole_ms);
            Err(Problem::new(Code::RequestTimeout, detail))
        }),
    }
}

/// What a body says it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Media {
    /// One JSON value.
    Json,
    /// A JSON value a line.
    Lines,
}

/// Reads `Content-Type`; a missing one means JSON. A body that is packed is refused: its size could not be bounded by what
/// arrives.
pub fn media(headers: &HeaderMap, allowed: &[Media]) -> Result<Media, Problem> {
    let refuse = |detail: String, name: &str| Err(Problem::new(Code::UnsupportedMediaType, detail).at(name));
    if let Some(packed) = headers.get(header::CONTENT_ENCODING)
        && packed != "identity"
    {
        return refuse(format!("bodies are read unpacked, not as {packed:?}"), "Content-Encoding");
    }
    let names = match allowed {
        [Media::Json] => "application/json",
        _ => "application/x-ndjson or application/json",
    };
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return Ok(Media::Json) };
    let text = value.to_str().unwrap_or_default();
    let essence = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let found = match essence.as_str() {
        "application/json" => Some(Media::Json),
        "application/x-ndjson" | "application/ndjson" | "application/jsonl" | "application/jsonlines" => {
            Some(Media::Lines)
        }
        _ => None,
    };
    match found {
        Some(media) if allowed.contains(&media) => Ok(media),
        _ => refuse(format!("send {names} (`Content-Type: {names}`), not {essence:?}"), "Content-Type"),
    }
}

/// The longest idempotency key, bytes.
const KEY_BYTES: usize = schemas::Key::MAX_BYTES;

/// Reads `Idempotency-Key`: a Structured-Field string in quotes (RFC 9651 §3.3.3), or the bare text.
pub fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let mut values = headers.get_all("idempotency-key").iter();
    let Some(value) = values.next() else { return Ok(None) };
    let refuse = |why: String| Err(Problem::new(Code::InvalidHeader, why).at("Idempotency-Key"));
    if values.next().is_some() {
        return refuse("`Idempotency-Key` must be given once".to_owned());
    }
    let Some(text) = value.to_str().ok().map(str::trim) else {
        return refuse("`Idempotency-Key` must be visible ASCII".to_owned());
    };
    let key = match text.strip_prefix('"') {
        None => text.to_owned(),
        Some(rest) => match unquoted(rest) {
            Some(key) => key,
            None => return refuse("`Idempotency-Key` starts with a quote and is not a quoted string".to_owned()),
        },
    };
    if key.is_empty() || key.len() > KEY_BYTES {
        return refuse(format!("`Idempotency-Key` must have 1 to {KEY_BYTES} bytes, it has {}", key.len()));
    }
    Ok(Some(key))
}

/// The text of a quoted string whose opening quote is gone.
fn unquoted(rest: &str) -> Option<String> {
    let mut key = String::with_capacity(rest.len());
    let mut chars = rest.chars();
    loop {
        match chars.next()? {
            '"' => return chars.next().is_none().then_some(key),
            '\\' => match chars.next()? {
                escaped @ ('"' | '\\') => key.push(escaped),
                _ => return None,
            },
            plain @ ' '..='~' => key.push(plain),
            _ => return None,
        }
    }
}

/// Reads `traceparent` (W3C Trace Context, level 1 §3.2). One that is not well formed is ignored, as the recommendation asks.
pub fn traceparent(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all("traceparent").iter();
    let text = values.next()?.to_str().ok()?;
    if values.next().is_some() {
        return None;
    }
    trace_text(text)
}

/// Reads a `traceparent`'s text.
pub fn trace_text(text: &str) -> Option<&str> {
    let (version, trace, parent, flags) = (text.get(..2)?, text.get(3..35)?, text.get(36..52)?, text.get(53..55)?);
    let lower_hex = |part: &str| part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let dashed = [2, 35, 52].iter().all(|i| text.as_bytes()[*i] == b'-');
    let whole = match version {
        "ff" => false,
        "00" => text.len() == 55,
        // A later version may say more behind another dash; what is carried on is the part known here.
        _ => text.len() == 55 || text.as_bytes()[55] == b'-',
    };
    let formed = dashed && whole && [version, trace, parent, flags].into_iter().all(lower_hex);
    let named = trace.bytes().any(|b| b != b'0') && parent.bytes().any(|b| b != b'0');
    (formed && named).then_some(&text[..55])
}

/// An answer in JSON.
pub fn json(status: StatusCode, body: &impl serde::Serialize) -> Response {
    match serde_json::to_vec(body) {
        Ok(bytes) => (status, [(header::CONTENT_TYPE, "application/json")], bytes).into_response(),
        Err(why) => {
            Refusal(Problem::new(Code::Internal, format!("the answer cannot be written: {why}"))).into_response()
        }
    }
}
