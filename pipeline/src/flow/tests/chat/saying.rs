//! What people say and ask in these tests.

use super::*;
use crate::item::{Asked, Fresh, Work};

pub(super) fn pair(n: u8) -> Pair {
    // Users 7, 8 and 9 are those whom deliveries miss.
    Pair {
        tenant: Tenant::parse("acme").unwrap(),
        business: Name::parse("sara").unwrap(),
        mobile: Phone::from_stored(&format!("+96279000000{}", n % 10)).unwrap(),
    }
}

pub(super) fn by(side: Side, pair: &Pair) -> Sender {
    Sender::User(match side {
        Side::Mobile => pair.mobile().party,
        Side::Business => pair.business().party,
    })
}

/// What somebody says or asks, by its number: the same number is the same thing.
#[derive(Debug, Clone)]
pub(super) struct Said {
    pub(super) n: u16,
    pub(super) pair: u8,
    pub(super) side: Side,
    pub(super) what: Deed,
}

#[derive(Debug, Clone)]
pub(super) enum Deed {
    Message,
    Edit(u16),
    Delete(u16),
    Read(u64),
    ReadAt(u16),
    Close(bool),
    Block(bool),
    Assign(&'static str),
    Archive(bool),
    Open,
}

impl Said {
    pub(super) fn id(&self) -> MessageId {
        id_of(self.n, self.pair, self.side)
    }

    pub(super) fn item(&self, replay: bool, offset: Offset) -> Item {
        let pair = pair(self.pair);
        let (id, from) = (self.id(), by(self.side, &pair));
        let fingerprint = u128::from(self.n).to_le_bytes();
        let work = if let Deed::Message = self.what {
            let to = if self.side == Side::Mobile { pair.business() } else { pair.mobile() };
            let message = Message {
                id,
                kind: Kind::Chat(pair.id()),
                from,
                to,
                priority: Priority::High,
                content: text(&format!("message {}", self.n)),
                fingerprint,
                ..message(1)
            };
            Work::Fresh(Fresh { message: Arc::new(message), replay, end: None, conflict: false, due: None })
        } else {
            let of = |n: u16| id_of(n, self.pair, self.side);
            let command = match self.what {
                Deed::Edit(n) => Command::Edit { of: of(n), content: text(&format!("better {}", self.n)) },
                Deed::Delete(n) => Command::Delete { of: of(n) },
                Deed::Read(seq) => Command::Read { up_to: UpTo::Seq(seq) },
                Deed::ReadAt(n) => Command::Read { up_to: UpTo::Id(id_of(n, self.pair, self.side.other())) },
                Deed::Close(true) => Command::Close,
                Deed::Close(false) => Command::Reopen,
                Deed::Block(block) => Command::Block(block),
                Deed::Assign(to) => Command::Assign { to: Name::parse(to).unwrap() },
                Deed::Archive(archived) => Command::Archive(archived),
                Deed::Open | Deed::Message => Command::Open,
            };
            let (client_ref, trace, accepted_at) = (None, None, Timestamp(1_000));
            let command = ChatCommand { id, pair, by: from, command, accepted_at, client_ref, trace, fingerprint };
            Work::Chat(Box::new(Asked { command, replay, conflict: false }))
        };
        Item { partition: Partition(0), epoch: Epoch(1), offset: Some(offset), work }
    }

    /// Whether it leaves a turn, or the fact that it was refused.
    pub(super) fn is_told(&self) -> bool {
        matches!(self.what, Deed::Message | Deed::Edit(_))
    }
}

pub(super) fn id_of(n: u16, of: u8, side: Side) -> MessageId {
    let pair = pair(of);
    pair.name(&by(side, &pair), &n.to_string())
}

pub(super) fn text(body: &str) -> Content {
    Content { content_type: ContentType::Text, subject: None, body: body.to_owned() }
}

pub(super) fn sides() -> impl Strategy<Value = Side> {
    prop_oneof![Just(Side::Mobile), Just(Side::Business)]
}

pub(super) fn whats() -> impl Strategy<Value = Deed> {
    prop_oneof![
        10 => Just(Deed::Message),
        2 => (0u16..40).prop_map(Deed::Edit),
        2 => (0u16..40).prop_map(Deed::Delete),
        4 => (0u64..30).prop_map(Deed::Read),
        2 => (0u16..40).prop_map(Deed::ReadAt),
        1 => any::<bool>().prop_map(Deed::Close),
        1 => any::<bool>().prop_map(Deed::Block),
        1 => prop_oneof![Just("sara"), Just("omar")].prop_map(Deed::Assign),
        1 => any::<bool>().prop_map(Deed::Archive),
        1 => Just(Deed::Open),
    ]
}
