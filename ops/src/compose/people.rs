//! Who is believed, and who is told: what the configuration says of people, as the parts want it.

use ingest::auth::{Algorithm, ApiKey, AuthSettings, Permissions};
use schemas::Tenant;
use sinks::Notice;

use crate::{
    config::{AuthConfig, Config, NoticeConfig},
    exit::Failure,
    folder,
};

/// Whether tokens are signed by the data folder's own key, because nothing else is configured.
pub(super) fn uses_folder_key(config: &AuthConfig) -> bool {
    let is_shared = !["RS256", "ES256", "EdDSA"].contains(&config.algorithm.as_str());
    is_shared && config.secret.is_empty() && config.secret_file.as_os_str().is_empty()
}

/// How callers are told apart, as the configuration says; by the data folder's own key where it says nothing.
pub(super) fn auth(config: &Config) -> Result<AuthSettings, Failure> {
    let AuthConfig { algorithm, secret, secret_file, jwks, issuer, audience, api_keys } = &config.auth;
    let some = |text: &String| (!text.is_empty()).then(|| text.clone());
    let algorithm = match algorithm.as_str() {
        "RS256" => Algorithm::RS256,
        "ES256" => Algorithm::ES256,
        "EdDSA" => Algorithm::EdDSA,
        _ => Algorithm::HS256,
    };
    let is_shared = matches!(algorithm, Algorithm::HS256);
    let secret = match (is_shared, secret.is_empty(), secret_file.as_os_str().is_empty()) {
        (false, ..) => None,
        (_, false, _) => Some(secret.clone().into_bytes()),
        (.., false) => Some(std::fs::read(secret_file).map_err(|why| {
            Failure::usage(format!("`auth.secret_file` {} cannot be read: {why}", secret_file.display()))
        })?),
        _ => Some(folder::key(&config.data)?),
    };
    let api_keys = api_keys.iter().map(|key| {
        let tenant = Tenant::parse(&key.tenant).map_err(|why| why.to_string())?;
        let can = Permissions::parse(key.can.iter().map(String::as_str))?;
        Ok(ApiKey { sha256: key.sha256.clone(), tenant, can })
    });
    let api_keys = api_keys.collect::<Result<_, String>>();
    let api_keys = api_keys.map_err(|why| Failure::usage(format!("`auth.api_keys`: {why}")))?;
    let jwks = (!jwks.as_os_str().is_empty()).then(|| jwks.clone());
    Ok(AuthSettings { algorithm, secret, jwks, issuer: some(issuer), audience: some(audience), api_keys })
}

/// Who is told of dead letters.
pub(super) fn notice(config: &NoticeConfig) -> Notice {
    let webhook = (!config.webhook.is_empty()).then(|| Notice::Webhook(config.webhook.clone()));
    let command = (!config.command.is_empty()).then(|| Notice::Command(config.command.clone()));
    match (webhook, command) {
        (Some(webhook), Some(command)) => Notice::Several(vec![webhook, command]),
        (Some(one), None) | (None, Some(one)) => one,
        (None, None) => Notice::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notices_are_what_configuration_names() {
        let config = |webhook: &str, command: &[&str]| NoticeConfig {
            webhook: webhook.to_owned(),
            command: command.iter().map(|s| (*s).to_owned()).collect(),
        };
        assert_eq!(notice(&config("", &[])), Notice::None);
        assert_eq!(notice(&config("https://x", &[])), Notice::Webhook("https://x".to_owned()));
        assert!(matches!(notice(&config("https://x", &["mail"])), Notice::Several(both) if both.len() == 2));
    }

    #[test]
    fn a_configured_secret_needs_no_signing_key() {
        let mut config = Config { data: "/nonexistent".into(), ..Config::default() };
        assert!(uses_folder_key(&config.auth));
        config.auth.secret = "0123456789abcdef0123456789abcdef".to_owned();
        assert!(!uses_folder_key(&config.auth));
        assert_eq!(auth(&config).unwrap().secret.unwrap(), config.auth.secret.as_bytes());
        config.auth.secret.clear();
        assert!(auth(&config).is_err());
    }
}
