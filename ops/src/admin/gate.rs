//! Who may come in here, and how far they see.

use std::sync::Arc;

use axum::{extract::FromRequestParts, http::request};
use ingest::{
    auth::Caller,
    http::{Authed, Refusal},
};
use schemas::{Code, Problem, Tenant};

use super::Admin;

/// A caller with the permission `admin`.
pub struct Administrator {
    /// Who it is.
    pub caller: Arc<Caller>,
    /// The one tenant it sees; `None`: all of them.
    pub scope: Option<Tenant>,
}

impl Administrator {
    fn of(caller: Arc<Caller>, operators: &Tenant) -> Result<Self, Problem> {
        if !caller.can.admin {
            return Err(Problem::new(Code::Forbidden, "this needs a token with the permission `admin`"));
        }
        let scope = (caller.tenant != *operators).then(|| caller.tenant.clone());
        Ok(Self { caller, scope })
    }

    /// Whether this is its own tenant's, or anyone's for an operator.
    pub fn sees(&self, tenant: &Tenant) -> bool {
        self.scope.as_ref().is_none_or(|scope| scope == tenant)
    }

    /// Passes operators alone.
    pub fn operator(&self, operators: &Tenant) -> Result<(), Problem> {
        if self.scope.is_none() {
            return Ok(());
        }
        let detail = format!(
            "this concerns every tenant: it needs an administrator of tenant `{operators}` (configuration key `operators`)"
        );
        Err(Problem::new(Code::Forbidden, detail))
    }
}

impl FromRequestParts<Admin> for Administrator {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut request::Parts, admin: &Admin) -> Result<Self, Refusal> {
        let Authed(caller) = Authed::from_request_parts(parts, admin).await?;
        Ok(Self::of(caller, &admin.0.operators)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ingest::auth::{Permissions, Who};

    fn caller(tenant: &str, admin: bool) -> Arc<Caller> {
        let can = Permissions { admin, ..Permissions::default() };
        let tenant = Tenant::parse(tenant).unwrap();
        Arc::new(Caller { tenant, who: Who::Server, can, expires_at: None, verified: true })
    }

    #[test]
    fn an_administrator_sees_its_tenant_and_an_operator_all() {
        let operators = Tenant::parse("operators").unwrap();
        let (acme, other) = (Tenant::parse("acme").unwrap(), Tenant::parse("other").unwrap());
        assert!(Administrator::of(caller("operators", false), &operators).is_err());
        let own = Administrator::of(caller("acme", true), &operators).unwrap();
        assert!(own.sees(&acme) && !own.sees(&other) && own.operator(&operators).is_err());
        let all = Administrator::of(caller("operators", true), &operators).unwrap();
        assert!(all.sees(&acme) && all.sees(&other) && all.operator(&operators).is_ok());
    }
}
