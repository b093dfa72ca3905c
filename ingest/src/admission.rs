//! A draft becomes a message or a refusal: the one way in, for single messages and for items of a batch.

use schemas::{
    Code, Draft, Limits, Message, Priority, Problem, Sender, Tenant, Timestamp, draft::Admission, phone::BadPhone,
};

use crate::{
    auth::{Caller, Who},
    known::Phones,
    text,
};

/// A draft that was found good.
#[derive(Debug, Clone, PartialEq)]
pub struct Admitted {
    /// The message it makes.
    pub message: Message,
    /// Its sender only wants to know.
    pub dry_run: bool,
}

/// Who may send one-way messages: the business's servers and people, with the permission (R1.10).
pub fn may_send(caller: &Caller) -> Result<Sender, Problem> {
    let sender = business(caller, "send one-way messages")?;
    if caller.can.send { Ok(sender) } else { Err(lacks("send")) }
}

/// Who may broadcast (R1.10).
pub fn may_broadcast(caller: &Caller) -> Result<Sender, Problem> {
    let sender = business(caller, "broadcast")?;
    if caller.can.broadcast { Ok(sender) } else { Err(lacks("broadcast")) }
}

/// Who may chat: the business's people with the permission, and verified mobile users (R1.9). A server may close, reopen and
/// hand over; what else it may not is said by the rules of conversations.
pub fn may_chat(caller: &Caller) -> Result<Sender, Problem> {
    match &caller.who {
        Who::Mobile(_) if !caller.verified => {
            let detail = "the token does not say `verified`: chat is for verified mobile users";
            return Err(Problem::new(Code::NotVerified, detail).at("Authorization"));
        }
        Who::Server | Who::Business(_) if !caller.can.chat => return Err(lacks("chat")),
        _ => {}
    }
    let refuse = || Problem::new(Code::Forbidden, "an administrator has no part in conversations: use a user's token");
    caller.sender().ok_or_else(refuse)
}

fn business(caller: &Caller, what: &str) -> Result<Sender, Problem> {
    let who = match caller.who {
        Who::Server | Who::Business(_) => None,
        Who::Mobile(_) => Some("a mobile user"),
        Who::Admin => Some("an administrator"),
    };
    match (who, caller.sender()) {
        (None, Some(sender)) => Ok(sender),
        (who, _) => {
            let who = who.unwrap_or("this caller");
            Err(Problem::new(
                Code::Forbidden,
                format!("{who} cannot {what}: use a business user's or a server's token"),
            ))
        }
    }
}

fn lacks(permission: &str) -> Problem {
    Problem::new(Code::Forbidden, format!("the token lacks the permission `{permission}`")).at("Authorization")
}

/// What all drafts of one request share.
pub struct Desk<'a> {
    /// Whose messages they are.
    pub tenant: &'a Tenant,
    /// Who sends them.
    pub from: &'a Sender,
    /// The key from the header.
    pub header_key: Option<&'a str>,
    /// The trace they belong to.
    pub trace: Option<&'a str>,
    /// Now.
    pub now: Timestamp,
    /// The bounds.
    pub limits: &'a Limits,
    /// Remembered numbers.
    pub phones: &'a Phones,
}

impl Desk<'_> {
    /// Reads and admits one draft.
    pub fn read(&self, json: &[u8]) -> Result<Admitted, Problem> {
        self.admit(&Draft::<String>::parse(json)?)
    }

    /// Admits one draft.
    pub fn admit(&self, draft: &Draft) -> Result<Admitted, Problem> {
        if let (Some(key), Some(header)) = (draft.key.as_deref(), self.header_key)
            && key != header
        {
            let detail = "`key` differs from the header `Idempotency-Key`: give one of them";
            return Err(Problem::new(Code::InvalidField, detail).at("/key"));
        }
        let check: &dyn Fn(&str) -> Result<schemas::Phone, BadPhone> = &|text| self.phones.check(text);
        let at = Admission {
            tenant: self.tenant,
            from: self.from,
            header_key: self.header_key,
            broadcast: None,
            trace: self.trace,
            default_priority: Priority::Normal,
            now: self.now,
            limits: &self.limits.message,
            phone: check,
            clean: &text::clean,
        };
        Ok(Admitted { message: draft.admit(&at)?, dry_run: draft.dry_run })
    }
}
