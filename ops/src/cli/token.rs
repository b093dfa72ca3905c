//! `esh3ar token`: a token from the data folder's signing key, for whoever has no identity provider yet.

use std::path::PathBuf;

use clap::{ArgGroup, Args};
use ingest::auth::{NewToken, Permissions, Who};
use schemas::{Clock, Name, Phone, Tenant};
use serde_json::json;

use super::print;
use crate::{clock::SystemClock, exit::Failure, folder};

pub(super) const EXAMPLE: &str = "Examples:
  esh3ar token --tenant acme --server                          may send and broadcast
  esh3ar token --tenant acme --user +962790000001 --ttl 7d     a phone, verified: it may chat
  esh3ar token --tenant acme --business sara --can chat        one of the business's people, to chat
  curl -H \"Authorization: Bearer $(esh3ar token --tenant acme --server)\" ...";

/// Arguments of `token`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("who").required(true))]
pub struct TokenArgs {
    /// The business it belongs to.
    #[arg(long)]
    tenant: Tenant,
    /// For the business's own server.
    #[arg(long, group = "who")]
    server: bool,
    /// For one of its people.
    #[arg(long, group = "who", value_name = "NAME")]
    business: Option<Name>,
    /// For a mobile user.
    #[arg(long, group = "who", value_name = "PHONE", value_parser = phone)]
    user: Option<Phone>,
    /// For an administrator.
    #[arg(long, group = "who")]
    admin: bool,
    /// What it permits: send, chat, broadcast, admin. By default what its holder usually may.
    #[arg(long, value_delimiter = ',', value_name = "LIST")]
    can: Option<Vec<String>>,
    /// For a mobile user who was not verified: it receives, and may not chat.
    #[arg(long, requires = "user")]
    unverified: bool,
    /// How long it holds: 90s, 30m, 24h, 7d.
    #[arg(long, default_value = "24h", value_parser = duration_ms, value_name = "TIME")]
    ttl: u64,
    /// The data folder whose key signs it.
    #[arg(long, default_value = "./esh3ar-data", env = "ESH3AR_DATA", value_name = "DIR")]
    data: PathBuf,
}

/// Reads a phone number from the command line.
pub(super) fn phone(text: &str) -> Result<Phone, String> {
    Phone::parse(text).map_err(|why| format!("{text} {why}"))
}

/// Reads a time like 90s, 30m, 24h or 7d, as milliseconds.
pub(super) fn duration_ms(text: &str) -> Result<u64, String> {
    let bad = || format!("{text} is not a time: write 500ms, 90s, 30m, 24h or 7d");
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit {
        "ms" => 1,
        "s" | "" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(bad()),
    };
    number.parse().ok().and_then(|n: u64| n.checked_mul(factor)).filter(|ms| *ms > 0).ok_or_else(bad)
}

/// What somebody usually may.
pub(super) fn usual(who: &Who) -> Permissions {
    let business = matches!(who, Who::Server | Who::Business(_));
    let admin = matches!(who, Who::Admin);
    Permissions { send: business, chat: !admin, broadcast: business, admin }
}

/// Makes the token.
pub(super) fn run(args: &TokenArgs, json: bool) -> Result<(), Failure> {
    let who = match (&args.business, args.user) {
        (Some(name), _) => Who::Business(name.clone()),
        (_, Some(phone)) => Who::Mobile(phone),
        _ if args.server => Who::Server,
        _ => Who::Admin,
    };
    let can = match &args.can {
        None => usual(&who),
        Some(words) => Permissions::parse(words.iter().map(|w| w.trim())).map_err(Failure::usage)?,
    };
    let key = folder::read_key(&args.data)?.ok_or_else(|| {
        Failure::unreachable(format!(
            "{} holds no signing key: `esh3ar up --data {0}` makes one on its first start",
            args.data.display()
        ))
    })?;
    let now = SystemClock::new().wall();
    let new = NewToken { tenant: args.tenant.clone(), who, can, ttl_ms: args.ttl };
    let token =
        ingest::auth::mint_as(&key, &new, !args.unverified, now).map_err(|why| Failure::failed(why.to_string()))?;
    if json { print::json(&json!({ "token": token, "expires_at": now.plus_ms(args.ttl) })) } else { print::line(token) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_with_their_units() {
        for (text, ms) in
            [("500ms", 500), ("90s", 90_000), ("30m", 1_800_000), ("24h", 86_400_000), ("7d", 604_800_000)]
        {
            assert_eq!(duration_ms(text), Ok(ms));
        }
        for bad in ["", "h", "-1h", "1y", "0s", "99999999999999999999d"] {
            assert!(duration_ms(bad).is_err(), "{bad}");
        }
    }
}
