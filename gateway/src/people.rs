//! People as others see them: who is connected and when somebody was last, for those who share a conversation and where it
//! is permitted. Comings and goings are told live, best effort: what waits too long is dropped and counted, and lists show
//! what is true when they are read.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures::{StreamExt, stream};
use parking_lot::Mutex;
use schemas::{
    Conversation, Millis, Timestamp, UserId,
    conversation::Side,
    port::{Person, PortResult, Signal},
    view::Thread,
};
use tokio::sync::mpsc;

use crate::Gateway;

/// Comings and goings told at once.
const AT_ONCE: usize = 8;

/// What others may know of a user's presence; `None`: it does not say, or it is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct About {
    /// Whether it is connected.
    pub(crate) online: Option<bool>,
    /// When it was last connected.
    pub(crate) last_seen: Option<Timestamp>,
}

/// What happened to a user.
#[derive(Debug)]
enum News {
    Came(UserId),
    /// Its session ended, then.
    Left(UserId, Timestamp),
    /// It chose whether others may know.
    Chose(UserId, bool),
}

/// Where news is put in.
#[derive(Debug)]
pub(crate) struct Herald {
    came: mpsc::Sender<News>,
    left: mpsc::Sender<(Millis, News)>,
    /// Whose going waits to be told, and how often: whoever comes back before it is, was never gone. As many as wait at most.
    away: Mutex<HashMap<UserId, u32>>,
}

/// Where it comes out.
pub(crate) struct Waiting {
    came: mpsc::Receiver<News>,
    left: mpsc::Receiver<(Millis, News)>,
}

impl Herald {
    pub(crate) fn new(most: usize) -> (Self, Waiting) {
        let ((came, coming), (left, leaving)) = (mpsc::channel(most.max(1)), mpsc::channel(most.max(1)));
        (Self { came, left, away: Mutex::default() }, Waiting { came: coming, left: leaving })
    }

    /// A session of this user has begun.
    pub(crate) fn came(&self, user: &UserId) {
        if !self.away.lock().contains_key(user) {
            counted(self.came.try_send(News::Came(user.clone())).is_err());
        }
    }

    /// A session of this user has ended; it is looked at again at `due`.
    pub(crate) fn left(&self, user: &UserId, at: Timestamp, due: Millis) {
        let mut away = self.away.lock();
        let dropped = self.left.try_send((due, News::Left(user.clone(), at))).is_err();
        if !dropped {
            *away.entry(user.clone()).or_default() += 1;
        }
        counted(dropped);
    }

    /// Its going is looked at now; false: a later one of the same user waits still, and will tell.
    fn look_at(&self, news: &News) -> bool {
        let News::Left(user, _) = news else { return true };
        let mut away = self.away.lock();
        let Some(waiting) = away.get_mut(user) else { return true };
        *waiting -= 1;
        let last = *waiting == 0;
        if last {
            away.remove(user);
        }
        last
    }

    /// A user has chosen.
    pub(crate) fn chose(&self, user: &UserId, show_presence: bool) {
        counted(self.came.try_send(News::Chose(user.clone(), show_presence)).is_err());
    }
}

fn counted(dropped: bool) {
    if dropped {
        metrics::counter!("esh3ar_presence_dropped_total").increment(1);
    }
}

/// Tells who came and who went, until the gateway is dropped.
pub(crate) async fn tell(gateway: std::sync::Weak<Gateway>, waiting: Waiting) {
    let Waiting { came, left } = waiting;
    let coming = stream::unfold(came, |mut came| async move { came.recv().await.map(|news| (Some(news), came)) });
    let leaving = stream::unfold((left, gateway.clone()), |(mut left, gateway)| async move {
        let (due, news) = left.recv().await?;
        // Whoever left earlier is due earlier: waiting for one holds up none.
        let wait = gateway.upgrade().map_or(0, |here: Arc<Gateway>| due.since(here.parts.clock.mono()));
        tokio::time::sleep(Duration::from_millis(wait)).await;
        let tells = gateway.upgrade().is_some_and(|here| here.herald.look_at(&news));
        Some((tells.then_some(news), (left, gateway)))
    });
    let both = stream::select(Box::pin(coming), Box::pin(leaving));
    let tell = |news| {
        let here = gateway.upgrade();
        async move {
            let (Some(here), Some(news)) = (here, news) else { return };
            if let Err(why) = here.told(news).await {
                tracing::debug!(%why, "nobody was told that somebody came or went");
                counted(true);
            }
        }
    };
    both.for_each_concurrent(AT_ONCE, tell).await;
}

impl Gateway {
    /// What is known of the presence of these, as whoever shares a conversation with them is shown it. One look-up for all.
    pub(crate) async fn about(&self, others: &[UserId]) -> Vec<About> {
        if others.is_empty() {
            return Vec::new();
        }
        let (presence, history) = (&self.parts.presence, &self.parts.history);
        let (people, places) = tokio::join!(history.people(others), presence.locate(others));
        let Ok(people) = people.inspect_err(|why| tracing::debug!(%why, "people could not be read")) else {
            return vec![About::default(); others.len()];
        };
        let online: Vec<Option<bool>> = match places {
            Ok(places) => places.iter().map(|places| Some(!places.is_empty())).collect(),
            Err(_) => vec![None; others.len()],
        };
        let about = |(person, online): (Person, Option<bool>)| match person.show_presence {
            true => About { online, last_seen: person.last_seen.filter(|_| online != Some(true)) },
            false => About::default(),
        };
        people.into_iter().zip(online).map(about).collect()
    }

    /// Conversations as this side is shown them, with what the other sides let be known of their presence. Where one of the two
    /// refuses the other, nothing is.
    pub(crate) async fn threads(&self, rows: &[Conversation], side: Side) -> Vec<Thread> {
        let open: Vec<&Conversation> = rows.iter().filter(|row| !row.blocked).collect();
        let others: Vec<UserId> = open.iter().map(|row| row.user(side.other())).collect();
        let about: HashMap<_, _> = open.iter().map(|row| row.id).zip(self.about(&others).await).collect();
        let shown = |row: &Conversation| {
            let About { online, last_seen } = about.get(&row.id).copied().unwrap_or_default();
            Thread { online, last_seen, ..Thread::of(row, side) }
        };
        rows.iter().map(shown).collect()
    }

    async fn told(self: &Arc<Self>, news: News) -> PortResult<()> {
        match news {
            News::Came(user) => {
                // Its other devices were here already: it is no news.
                if self.places_of(&user).await? == 1 && self.shows(&user).await? {
                    self.tell_peers(user, true, None).await?;
                }
            }
            News::Left(user, at) => {
                if self.places_of(&user).await? == 0 {
                    self.parts.history.seen(&[(user.clone(), at)]).await?;
                    if self.shows(&user).await? {
                        self.tell_peers(user.clone(), false, Some(at)).await?;
                        // It may have come back in between, and that was told first.
                        if self.places_of(&user).await? > 0 {
                            self.tell_peers(user, true, None).await?;
                        }
                    }
                }
            }
            // Whoever hides is told to be gone, so that nobody keeps it for connected.
            News::Chose(user, shows) => {
                let online = shows && self.places_of(&user).await? > 0;
                self.tell_peers(user, online, None).await?;
            }
        }
        Ok(())
    }

    async fn places_of(&self, user: &UserId) -> PortResult<usize> {
        let places = self.parts.presence.locate(std::slice::from_ref(user)).await?;
        Ok(places.first().map_or(0, Vec::len))
    }

    async fn shows(&self, user: &UserId) -> PortResult<bool> {
        let people = self.parts.history.people(std::slice::from_ref(user)).await?;
        Ok(people.first().is_none_or(|person| person.show_presence))
    }

    /// The other sides of the user's most recent conversations, where neither refuses the other.
    async fn tell_peers(&self, user: UserId, online: bool, last_seen: Option<Timestamp>) -> PortResult<()> {
        let most = self.parts.limits.chat.peers;
        let rows = self.parts.history.by_user(&user, false, None, most).await?.rows;
        let others = rows.iter().filter(|row| !row.blocked).filter_map(|row| {
            let side = row.side_of(&user)?;
            Some(row.user(side.other()))
        });
        let mut others: Vec<UserId> = others.collect();
        others.sort_unstable();
        others.dedup();
        let signal = Signal::Presence { user: user.party, online, last_seen };
        if !others.is_empty() {
            self.parts.dispatch.signal(others.into_iter().map(|other| (other, signal.clone())).collect()).await;
        }
        Ok(())
    }
}
