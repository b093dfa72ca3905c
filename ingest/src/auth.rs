//! Who is calling: signed tokens (JWT) and API keys become a [`Caller`], or a refusal.
//!
//! The algorithm is fixed by configuration and a token's header never chooses it; `exp` is required. A verified token is
//! remembered until it ends (a bounded number of them), so that a stream of requests pays for one signature.

mod caller;

use std::{path::PathBuf, sync::Arc};

use aws_lc_rs::{constant_time, digest};
use http::{HeaderMap, header};
use jsonwebtoken::{
    DecodingKey, EncodingKey, Header, Validation,
    errors::ErrorKind,
    jwk::{AlgorithmParameters, JwkSet, KeyAlgorithm, PublicKeyUse},
};
use parking_lot::RwLock;
use schemas::{Clock, Code, Problem, Tenant, Timestamp};
use serde::{Deserialize, Serialize};

pub use self::caller::{Caller, Permissions, Who};

/// How far a token's times and our clock may differ, ms: clocks kept by NTP differ by much less.
const LEEWAY_MS: u64 = 5_000;
/// The longest token looked at, bytes: as long as common servers let one header line be.
const TOKEN_BYTES: usize = 8 * 1024;
/// The shortest secret for HS256, bytes (RFC 7518 §3.2: as long as the hash).
const SECRET_BYTES: usize = 32;
/// Keys of one JWKS file that are tried for a token that names none.
const MAX_KEYS: usize = 64;

/// How tokens are signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Algorithm {
    /// A shared secret.
    HS256,
    /// RSA, keys from a JWKS file.
    RS256,
    /// ECDSA P-256, keys from a JWKS file.
    ES256,
    /// Ed25519, keys from a JWKS file.
    EdDSA,
}

impl Algorithm {
    fn of_library(self) -> jsonwebtoken::Algorithm {
        match self {
            Self::HS256 => jsonwebtoken::Algorithm::HS256,
            Self::RS256 => jsonwebtoken::Algorithm::RS256,
            Self::ES256 => jsonwebtoken::Algorithm::ES256,
            Self::EdDSA => jsonwebtoken::Algorithm::EdDSA,
        }
    }
}

/// A server key: only its hash is configured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApiKey {
    /// SHA-256 of the key, in hexadecimal.
    pub sha256: String,
    /// Whose it is.
    pub tenant: Tenant,
    /// What it may do.
    pub can: Permissions,
}

/// How callers are told apart.
#[derive(Clone)]
pub struct AuthSettings {
    /// The one algorithm of tokens.
    pub algorithm: Algorithm,
    /// The secret of `HS256`.
    pub secret: Option<Vec<u8>>,
    /// The JWKS file of the others.
    pub jwks: Option<PathBuf>,
    /// The `iss` a token must have.
    pub issuer: Option<String>,
    /// The `aud` a token must have.
    pub audience: Option<String>,
    /// Server keys.
    pub api_keys: Vec<ApiKey>,
}

/// Why the settings cannot be used, or a token not be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadAuth(pub String);

impl std::fmt::Display for BadAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for BadAuth {}

/// Tells who is calling.
pub struct Auth {
    algorithm: Algorithm,
    validation: Validation,
    jwks: Option<PathBuf>,
    /// Read at every new token and written by [`Auth::reload`] alone.
    keys: RwLock<Vec<(Option<String>, DecodingKey)>>,
    api_keys: Vec<([u8; 32], Arc<Caller>)>,
    /// By the token itself: a hash that could be met by another token would hand over its caller.
    remembered: moka::sync::Cache<Box<str>, Arc<Caller>>,
    clock: Arc<dyn Clock>,
}

/// What a token says. Unknown claims are ignored.
#[derive(Serialize, Deserialize)]
struct Claims {
    sub: String,
    tenant: String,
    #[serde(default)]
    can: Vec<String>,
    #[serde(default)]
    verified: bool,
    exp: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    nbf: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    iat: Option<f64>,
}

impl Auth {
    /// Checks the settings and reads the keys.
    pub fn new(settings: AuthSettings, clock: Arc<dyn Clock>) -> Result<Self, BadAuth> {
        Self::with_limits(settings, clock, &schemas::limits::DoorLimits::default())
    }

    /// The same with other bounds than the default ones.
    pub fn with_limits(
        settings: AuthSettings,
        clock: Arc<dyn Clock>,
        limits: &schemas::limits::DoorLimits,
    ) -> Result<Self, BadAuth> {
        let AuthSettings { algorithm, secret, jwks, issuer, audience, api_keys } = settings;
        let keys = match (algorithm, &secret, &jwks) {
            (Algorithm::HS256, Some(secret), _) if secret.len() >= SECRET_BYTES => {
                vec![(None, DecodingKey::from_secret(secret))]
            }
            (Algorithm::HS256, ..) => {
                return Err(BadAuth(format!(
                    "HS256 needs a secret of at least {SECRET_BYTES} bytes: set `auth.secret`"
                )));
            }
            (_, _, Some(path)) => read_jwks(path, algorithm)?,
            _ => {
                return Err(BadAuth(format!(
                    "{algorithm:?} needs the provider's public keys: set `auth.jwks` to a file"
                )));
            }
        };
        let mut validation = Validation::new(algorithm.of_library());
        // Times are judged here, by the clock that was given; the library would ask the machine.
        validation.validate_exp = false;
        validation.validate_nbf = false;
        let mut required = vec!["exp"];
        if let Some(issuer) = &issuer {
            validation.set_issuer(&[issuer]);
            required.push("iss");
        }
        if let Some(audience) = &audience {
            validation.set_audience(&[audience]);
            required.push("aud");
        }
        validation.set_required_spec_claims(&required);
        let api_keys = api_keys.iter().map(hashed).collect::<Result<_, _>>()?;
        let remembered = moka::sync::Cache::builder()
            .max_capacity(limits.known_tokens)
            .eviction_policy(moka::policy::EvictionPolicy::lru())
            .build();
        Ok(Self { algorithm, validation, jwks, keys: RwLock::new(keys), api_keys, remembered, clock })
    }

    /// Reads the JWKS file again, when the provider has changed its keys. On an error the old ones stay.
    pub fn reload(&self) -> Result<(), BadAuth> {
        if let Some(path) = &self.jwks
            && self.algorithm != Algorithm::HS256
        {
            *self.keys.write() = read_jwks(path, self.algorithm)?;
            self.remembered.invalidate_all();
        }
        Ok(())
    }

    /// Who holds this token or API key.
    pub fn verify(&self, token: &str) -> Result<Arc<Caller>, Problem> {
        let now = self.clock.wall();
        if let Some(caller) = self.remembered.get(token) {
            if caller.has_ended(now) {
                self.remembered.invalidate(token);
                return Err(ended(&caller));
            }
            return Ok(caller);
        }
        if token.len() > TOKEN_BYTES {
            return Err(unauthenticated(format!("the token is longer than {TOKEN_BYTES} bytes")));
        }
        let caller = match token.bytes().filter(|b| *b == b'.').count() {
            2 => self.verify_signed(token, now)?,
            _ => self.verify_key(token)?,
        };
        self.remembered.insert(token.into(), caller.clone());
        Ok(caller)
    }

    fn verify_key(&self, key: &str) -> Result<Arc<Caller>, Problem> {
        let hash = digest::digest(&digest::SHA256, key.as_bytes());
        let mut found = None;
        // All are compared, each in constant time, so that the time tells nothing about which one was nearly met.
        for (known, caller) in &self.api_keys {
            if constant_time::verify_slices_are_equal(known, hash.as_ref()).is_ok() {
                found = Some(caller);
            }
        }
        found.cloned().ok_or_else(|| unauthenticated("this is neither a signed token nor a known API key"))
    }

    fn verify_signed(&self, token: &str, now: Timestamp) -> Result<Arc<Caller>, Problem> {
        let claims = self.claims(token).map_err(|kind| refused(&kind))?;
        let ms = |seconds: f64| Timestamp((seconds * 1000.0) as i64);
        let bad = |claim: &str, why: &dyn std::fmt::Display| unauthenticated(format!("the token's `{claim}` {why}"));
        if claims.nbf.is_some_and(|from| ms(from) > now.plus_ms(LEEWAY_MS)) {
            return Err(bad("nbf", &"is still to come"));
        }
        let who = claims.sub.parse::<Who>().map_err(|why| bad("sub", &why))?;
        let tenant = Tenant::parse(&claims.tenant).map_err(|why| bad("tenant", &why))?;
        // A permission that this release does not know gives nothing: the provider may know more services than this one.
        let known = claims.can.iter().map(String::as_str).filter(|word| Permissions::WORDS.contains(word));
        let mut can = Permissions::parse(known).unwrap_or_default();
        can.admin |= who == Who::Admin;
        let caller = Caller { tenant, who, can, expires_at: Some(ms(claims.exp)), verified: claims.verified };
        if caller.has_ended(now) { Err(ended(&caller)) } else { Ok(Arc::new(caller)) }
    }

    fn claims(&self, token: &str) -> Result<Claims, ErrorKind> {
        let keys = self.keys.read();
        // The header only says which of the keys to try; the algorithm it names must be the configured one.
        let named = match keys.as_slice() {
            [(None, _)] => None,
            _ => jsonwebtoken::decode_header(token).map_err(|why| why.into_kind())?.kid,
        };
        let mut last = ErrorKind::InvalidSignature;
        for (id, key) in keys.iter() {
            if named.is_some() && id.is_some() && named != *id {
                continue;
            }
            match jsonwebtoken::decode::<Claims>(token, key, &self.validation) {
                Ok(data) => return Ok(data.claims),
                Err(why) => last = why.into_kind(),
            }
            if !matches!(last, ErrorKind::InvalidSignature) {
                break;
            }
        }
        Err(last)
    }
}

fn hashed(key: &ApiKey) -> Result<([u8; 32], Arc<Caller>), BadAuth> {
    let bad =
        || BadAuth(format!("the API key of tenant {} must be given as 64 hexadecimal digits of SHA-256", key.tenant));
    let text = key.sha256.as_bytes();
    if text.len() != 64 || !text.iter().all(u8::is_ascii_hexdigit) {
        return Err(bad());
    }
    let mut hash = [0; 32];
    for (byte, pair) in hash.iter_mut().zip(key.sha256.as_bytes().chunks_exact(2)) {
        let pair = std::str::from_utf8(pair).map_err(|_| bad())?;
        *byte = u8::from_str_radix(pair, 16).map_err(|_| bad())?;
    }
    let caller =
        Caller { tenant: key.tenant.clone(), who: Who::Server, can: key.can, expires_at: None, verified: true };
    Ok((hash, Arc::new(caller)))
}

fn read_jwks(path: &std::path::Path, algorithm: Algorithm) -> Result<Vec<(Option<String>, DecodingKey)>, BadAuth> {
    let shown = path.display();
    let text = std::fs::read(path).map_err(|why| BadAuth(format!("the JWKS file {shown} cannot be read: {why}")))?;
    let set: JwkSet = serde_json::from_slice(&text)
        .map_err(|why| BadAuth(format!("the JWKS file {shown} is not a JWK set: {why}")))?;
    let fits = |jwk: &&jsonwebtoken::jwk::Jwk| {
        let named = match (algorithm, jwk.common.key_algorithm) {
            (_, None) => true,
            (Algorithm::RS256, Some(a)) => a == KeyAlgorithm::RS256,
            (Algorithm::ES256, Some(a)) => a == KeyAlgorithm::ES256,
            (Algorithm::EdDSA, Some(a)) => a == KeyAlgorithm::EdDSA,
            (Algorithm::HS256, _) => false,
        };
        let shaped = matches!(
            (algorithm, &jwk.algorithm),
            (Algorithm::RS256, AlgorithmParameters::RSA(_))
                | (Algorithm::ES256, AlgorithmParameters::EllipticCurve(_))
                | (Algorithm::EdDSA, AlgorithmParameters::OctetKeyPair(_))
        );
        let signs = !matches!(jwk.common.public_key_use, Some(PublicKeyUse::Encryption));
        named && shaped && signs
    };
    let mut keys = Vec::new();
    for jwk in set.keys.iter().filter(fits).take(MAX_KEYS) {
        let key = DecodingKey::from_jwk(jwk)
            .map_err(|why| BadAuth(format!("a key of the JWKS file {shown} cannot be used: {why}")))?;
        keys.push((jwk.common.key_id.clone(), key));
    }
    if keys.is_empty() {
        return Err(BadAuth(format!("the JWKS file {shown} holds no key for {algorithm:?}")));
    }
    Ok(keys)
}

fn unauthenticated(detail: impl Into<String>) -> Problem {
    Problem::new(Code::Unauthenticated, detail).at("Authorization")
}

fn ended(caller: &Caller) -> Problem {
    let when = caller.expires_at.unwrap_or_default();
    Problem::new(Code::TokenExpired, format!("the token ended at {when}: get a new one")).at("Authorization")
}

fn refused(kind: &ErrorKind) -> Problem {
    let why = match kind {
        ErrorKind::InvalidAlgorithm | ErrorKind::InvalidAlgorithmName => {
            "the token is signed with another algorithm than the configured one".to_owned()
        }
        ErrorKind::InvalidSignature => "the token's signature is not by a known key".to_owned(),
        ErrorKind::InvalidIssuer => "the token's `iss` is not the configured one".to_owned(),
        ErrorKind::InvalidAudience => "the token's `aud` is not the configured one".to_owned(),
        ErrorKind::MissingRequiredClaim(claim) => format!("the token lacks `{claim}`"),
        ErrorKind::Json(why) => format!("the token's header or claims cannot be read: {why}"),
        _ => "the token is not a signed JWT".to_owned(),
    };
    unauthenticated(why)
}

/// What a new token is to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewToken {
    /// The business.
    pub tenant: Tenant,
    /// Which of its people or keys.
    pub who: Who,
    /// What it may do.
    pub can: Permissions,
    /// How long it holds, ms; at least a second.
    pub ttl_ms: u64,
}

/// Makes a token with a shared secret (HS256), for `esh3ar token`: a newcomer needs no identity provider. Whoever holds the
/// secret vouches for the person: the token says that it is verified.
pub fn mint(secret: &[u8], claims: &NewToken, now: Timestamp) -> Result<String, BadAuth> {
    mint_as(secret, claims, true, now)
}

/// The same, saying whether the person is verified (R1.9).
pub fn mint_as(secret: &[u8], claims: &NewToken, verified: bool, now: Timestamp) -> Result<String, BadAuth> {
    if secret.len() < SECRET_BYTES {
        return Err(BadAuth(format!("the secret must have at least {SECRET_BYTES} bytes")));
    }
    // Whole seconds, as most readers of JWT expect.
    let seconds = |t: Timestamp| (t.0 as f64 / 1000.0).floor();
    #[derive(Serialize)]
    struct Minted<'a> {
        sub: String,
        tenant: &'a Tenant,
        can: Permissions,
        verified: bool,
        iat: i64,
        exp: i64,
    }
    let minted = Minted {
        sub: claims.who.to_string(),
        tenant: &claims.tenant,
        can: claims.can,
        verified,
        iat: seconds(now) as i64,
        exp: seconds(now.plus_ms(claims.ttl_ms.max(1_000))) as i64,
    };
    jsonwebtoken::encode(&Header::new(jsonwebtoken::Algorithm::HS256), &minted, &EncodingKey::from_secret(secret))
        .map_err(|why| BadAuth(format!("the token cannot be signed: {why}")))
}

/// The token of a request: `Authorization: Bearer …`, or an API key in `X-Api-Key`.
pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    let given = match headers.get(header::AUTHORIZATION) {
        Some(value) => {
            let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then_some(token)?
        }
        None => headers.get("x-api-key")?.to_str().ok()?,
    };
    let given = given.trim();
    (!given.is_empty()).then_some(given)
}
