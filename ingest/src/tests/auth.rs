//! Who is let in.

use std::sync::Arc;

use jsonwebtoken::{EncodingKey, Header};
use schemas::{Code, time::ManualClock};
use serde_json::json;

use super::*;

fn auth(settings: AuthSettings) -> (Auth, Arc<ManualClock>) {
    let clock = Arc::new(ManualClock::at(NOW));
    (Auth::new(settings, clock.clone()).unwrap(), clock)
}

fn signed(claims: &Value, alg: jsonwebtoken::Algorithm, secret: &[u8]) -> String {
    jsonwebtoken::encode(&Header::new(alg), claims, &EncodingKey::from_secret(secret)).unwrap()
}

fn claims() -> Value {
    json!({ "sub": "server", "tenant": "acme", "can": ["send", "fly"], "exp": NOW.0 / 1000 + 60 })
}

#[test]
fn a_minted_token_is_its_caller() {
    let (auth, _) = auth(settings());
    let table = [
        ("server", Permissions { send: true, ..Default::default() }),
        ("business:sara", Permissions { chat: true, broadcast: true, ..Default::default() }),
        ("+962790000001", Permissions::default()),
        ("admin", Permissions { admin: true, ..Default::default() }),
    ];
    for (who, can) in table {
        let caller = auth.verify(&token_of("acme", who, can)).unwrap();
        assert_eq!((caller.who.to_string().as_str(), caller.can, caller.tenant.as_str()), (who, can, "acme"));
        assert_eq!(caller.expires_at, Some(NOW.plus_ms(3_600_000)));
        assert!(caller.verified);
    }
}

#[test]
fn an_api_key_is_its_tenant_s_server() {
    let (auth, clock) = auth(settings());
    let caller = auth.verify("key-of-acme").unwrap();
    assert_eq!((&caller.who, caller.tenant.as_str(), caller.expires_at), (&Who::Server, "acme", None));
    clock.pass(1_000_000_000);
    assert!(auth.verify("key-of-acme").is_ok());
    assert_eq!(auth.verify("key-of-acmf").unwrap_err().code, Code::Unauthenticated);
}

#[test]
fn a_remembered_token_still_ends() {
    let (auth, clock) = auth(settings());
    let token = server();
    assert!(auth.verify(&token).is_ok());
    clock.pass(3_600_000 + 4_999);
    assert!(auth.verify(&token).is_ok(), "within the leeway");
    clock.pass(1);
    assert_eq!(auth.verify(&token).unwrap_err().code, Code::TokenExpired);
    assert_eq!(auth.verify(&token).unwrap_err().code, Code::TokenExpired, "also when it is not remembered");
}

#[test]
fn every_wrong_token_is_refused_with_what_is_wrong() {
    use jsonwebtoken::Algorithm::{HS256, HS384};
    let (auth, _) = auth(AuthSettings { issuer: Some("me".into()), audience: Some("us".into()), ..settings() });
    let with = |key: &str, value: Value| {
        let mut claims = claims();
        claims["iss"] = json!("me");
        claims["aud"] = json!("us");
        if value.is_null() {
            claims.as_object_mut().unwrap().remove(key);
        } else {
            claims[key] = value;
        }
        claims
    };
    assert!(auth.verify(&signed(&with("jti", json!("x")), HS256, SECRET)).is_ok());
    let none = format!("eyJhbGciOiJub25lIn0.{}.", base64_url(&with("a", json!(1)).to_string()));
    let unauthenticated = [
        (signed(&with("a", json!(1)), HS384, SECRET), "another algorithm"),
        (signed(&with("a", json!(1)), HS256, b"another secret of thirty-two bytes!!"), "signature"),
        (none, "unknown variant `none`"),
        ("a.b.c".to_owned(), "not a signed JWT"),
        ("..".to_owned(), "header or claims cannot be read"),
        ("".to_owned(), "neither a signed token nor"),
        ("x".repeat(9_000), "longer than 8192 bytes"),
        (signed(&with("exp", Value::Null), HS256, SECRET), "`exp`"),
        (signed(&with("exp", json!("soon")), HS256, SECRET), "claims cannot be read"),
        (signed(&with("sub", json!("nobody")), HS256, SECRET), "`sub`"),
        (signed(&with("tenant", json!("A Tenant")), HS256, SECRET), "`tenant`"),
        (signed(&with("tenant", Value::Null), HS256, SECRET), "tenant"),
        (signed(&with("iss", json!("you")), HS256, SECRET), "`iss`"),
        (signed(&with("iss", Value::Null), HS256, SECRET), "iss"),
        (signed(&with("aud", json!(["them"])), HS256, SECRET), "`aud`"),
        (signed(&with("aud", Value::Null), HS256, SECRET), "aud"),
        (signed(&with("nbf", json!(NOW.0 / 1000 + 60)), HS256, SECRET), "`nbf`"),
    ];
    for (token, names) in unauthenticated {
        let problem = auth.verify(&token).unwrap_err();
        assert_eq!(problem.code, Code::Unauthenticated, "{names}: {problem}");
        assert!(problem.detail.contains(names), "{problem} does not name {names}");
    }
    let old = signed(&with("exp", json!(NOW.0 / 1000 - 60)), HS256, SECRET);
    assert_eq!(auth.verify(&old).unwrap_err().code, Code::TokenExpired);
}

fn base64_url(text: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(text)
}

#[test]
fn settings_that_cannot_work_are_refused_with_what_to_do() {
    let clock: Arc<ManualClock> = Arc::new(ManualClock::at(NOW));
    let table = [
        (AuthSettings { secret: None, ..settings() }, "auth.secret"),
        (AuthSettings { secret: Some(b"short".to_vec()), ..settings() }, "at least 32 bytes"),
        (AuthSettings { algorithm: Algorithm::ES256, ..settings() }, "auth.jwks"),
        (
            AuthSettings { algorithm: Algorithm::ES256, jwks: Some("/no/such/file".into()), ..settings() },
            "cannot be read",
        ),
        (
            AuthSettings { api_keys: vec![ApiKey { sha256: "abc".into(), tenant: acme(), can: all() }], ..settings() },
            "64 hexadecimal digits",
        ),
    ];
    for (settings, names) in table {
        let why = Auth::new(settings, clock.clone()).err().map(|why| why.0).unwrap_or_default();
        assert!(why.contains(names), "{why:?} does not name {names}");
    }
}

#[test]
fn a_provider_s_keys_are_used_and_can_be_renewed() {
    use aws_lc_rs::{rand::SystemRandom, signature as s};
    use jsonwebtoken::Algorithm::{ES256, EdDSA};
    let random = SystemRandom::new();
    let b64 = |bytes: &[u8]| {
        use base64::Engine as _;
        base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes)
    };
    let ed = |kid: &str| {
        let der = s::Ed25519KeyPair::generate_pkcs8(&random).unwrap();
        let public = s::Ed25519KeyPair::from_pkcs8(der.as_ref()).unwrap();
        let x = b64(s::KeyPair::public_key(&public).as_ref());
        let jwk = json!({ "kty": "OKP", "crv": "Ed25519", "kid": kid, "x": x });
        (EncodingKey::from_ed_der(der.as_ref()), EdDSA, Algorithm::EdDSA, jwk)
    };
    let (one, two) = (ed("one"), ed("two"));
    let der = s::EcdsaKeyPair::generate_pkcs8(&s::ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
    let public = s::EcdsaKeyPair::from_pkcs8(&s::ECDSA_P256_SHA256_FIXED_SIGNING, der.as_ref()).unwrap();
    let point = s::KeyPair::public_key(&public).as_ref().to_vec();
    let jwk = json!({ "kty": "EC", "crv": "P-256", "kid": "ec", "use": "sig", "x": b64(&point[1..33]), "y": b64(&point[33..]) });
    let ec = (EncodingKey::from_ec_der(der.as_ref()), ES256, Algorithm::ES256, jwk);
    let file = std::env::temp_dir().join(format!("esh3ar-jwks-{}.json", std::process::id()));
    let write = |keys: Value| std::fs::write(&file, json!({ "keys": keys }).to_string()).unwrap();
    let token = |(key, alg, ..): &(EncodingKey, jsonwebtoken::Algorithm, Algorithm, Value), kid: Option<&str>| {
        let header = Header { kid: kid.map(str::to_owned), ..Header::new(*alg) };
        jsonwebtoken::encode(&header, &claims(), key).unwrap()
    };
    write(json!([ec.3, one.3]));
    for given in [&ec, &one] {
        let (auth, _) = auth(AuthSettings { algorithm: given.2, jwks: Some(file.clone()), ..settings() });
        assert!(auth.verify(&token(given, None)).unwrap().can.send);
        let other = if given.2 == Algorithm::ES256 { &one } else { &ec };
        assert_eq!(auth.verify(&token(other, None)).unwrap_err().code, Code::Unauthenticated);
        assert!(auth.verify(&signed(&claims(), jsonwebtoken::Algorithm::HS256, SECRET)).is_err());
    }
    let (auth, _) = auth(AuthSettings { algorithm: Algorithm::EdDSA, jwks: Some(file.clone()), ..settings() });
    assert!(auth.verify(&token(&one, Some("one"))).is_ok());
    assert!(auth.verify(&token(&one, Some("two"))).is_err(), "a key that is not there");
    write(json!([two.3]));
    auth.reload().unwrap();
    assert!(auth.verify(&token(&one, Some("one"))).is_err(), "also when it was remembered");
    assert!(auth.verify(&token(&two, Some("two"))).is_ok());
    write(json!([]));
    assert!(auth.reload().is_err());
    assert!(auth.verify(&token(&two, Some("two"))).is_ok(), "the old keys stay");
    std::fs::remove_file(&file).unwrap();
}

proptest::proptest! {
    #[test]
    fn any_token_is_refused_and_nothing_panics(token in ".{0,80}", parts in "[A-Za-z0-9_-]{0,20}\\.[A-Za-z0-9_-]{0,20}\\.[A-Za-z0-9_-]{0,20}") {
        let (auth, _) = auth(settings());
        proptest::prop_assert!(auth.verify(&token).is_err() && auth.verify(&parts).is_err());
    }
}
