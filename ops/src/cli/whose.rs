//! Whose conversations: a user, with its tenant where that is named.

use std::{fmt, str::FromStr};

use ingest::auth::Who;
use schemas::{Name, Party, Phone, Tenant};

use super::client::{ClientArgs, Server};
use crate::exit::Failure;

/// A user of a business: `business:TENANT:NAME`, `mobile:TENANT:+NUMBER`, or without the tenant `business:NAME`, `+NUMBER`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Whose {
    tenant: Option<Tenant>,
    pub(super) party: Party,
}

impl FromStr for Whose {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || {
            format!("{text} names nobody: write business:TENANT:NAME, mobile:TENANT:+NUMBER, business:NAME or +NUMBER")
        };
        let parts: Vec<&str> = text.split(':').collect();
        let tenant = |text: &str| Tenant::parse(text).map_err(|why| format!("{}: {why}", bad()));
        let name = |text: &str| Name::parse(text).map(Party::Business).map_err(|why| format!("{}: {why}", bad()));
        let phone = |text: &str| Phone::parse(text).map(Party::Mobile).map_err(|why| format!("{text} {why}"));
        match parts[..] {
            ["business", of, own] => Ok(Self { tenant: Some(tenant(of)?), party: name(own)? }),
            ["mobile", of, own] => Ok(Self { tenant: Some(tenant(of)?), party: phone(own)? }),
            ["business", own] => Ok(Self { tenant: None, party: name(own)? }),
            ["mobile", own] => Ok(Self { tenant: None, party: phone(own)? }),
            [own] if own.starts_with('+') => Ok(Self { tenant: None, party: phone(own)? }),
            _ => Err(bad()),
        }
    }
}

impl fmt::Display for Whose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.party.fmt(f)
    }
}

impl Whose {
    /// Finds a server that answers reads, as this user.
    pub(super) fn find(&self, client: &ClientArgs) -> Result<Server, Failure> {
        self.client(client).find(self.who())
    }

    /// Finds a server that holds sockets, as this user.
    pub(super) fn find_sockets(&self, client: &ClientArgs) -> Result<Server, Failure> {
        self.client(client).find_sockets(self.who())
    }

    fn who(&self) -> Who {
        match &self.party {
            Party::Business(name) => Who::Business(name.clone()),
            Party::Mobile(phone) => Who::Mobile(*phone),
        }
    }

    fn client(&self, client: &ClientArgs) -> ClientArgs {
        let mut client = client.clone();
        if let Some(tenant) = &self.tenant {
            client.tenant = tenant.clone();
        }
        client
    }
}

/// Reads the other side: `+NUMBER`, or `business:NAME`.
pub(super) fn other(text: &str) -> Result<Party, String> {
    text.parse::<Whose>().map(|whose| whose.party)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_read_with_its_tenant_or_without() {
        for (text, tenant, party) in [
            ("business:acme:sara", Some("acme"), "business:sara"),
            ("mobile:acme:+962790000001", Some("acme"), "+962790000001"),
            ("business:sara", None, "business:sara"),
            ("+962790000001", None, "+962790000001"),
        ] {
            let read: Whose = text.parse().unwrap();
            assert_eq!(read.tenant.as_ref().map(Tenant::as_str), tenant, "{text}");
            assert_eq!(read.party.to_string(), party);
        }
        for bad in ["", "sara", "business:", "business:ACME:sara", "mobile:acme:12", "+12", "a:b:c:d"] {
            let said = bad.parse::<Whose>().unwrap_err();
            assert!(said.contains("+NUMBER") || said.contains("E.164"), "{bad}: {said}");
        }
    }
}
