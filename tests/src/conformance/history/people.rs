//! People: what a user lets others know, and when it was last here.

use schemas::{Timestamp, port::Person};

use super::{Installation, kit::*};

/// Each user's own, whatever order it comes in; a choice survives a crash.
pub async fn what_a_user_chose_stands_and_when_it_was_last_here_only_grows(bed: &mut dyn Installation) {
    let tenant = tenant();
    let users = [user(&tenant, 1), user(&tenant, 2), user(&tenant, 11)];
    let at = |ms: i64| Timestamp(NOON.0 + ms);
    assert_eq!(bed.history().people(&users).await.unwrap(), [Person::default(); 3]);
    bed.history().seen(&[(users[0].clone(), at(20)), (users[1].clone(), at(5))]).await.unwrap();
    bed.history().prefer(&users[0], false).await.unwrap();
    bed.history().seen(&[(users[0].clone(), at(10)), (users[1].clone(), at(30))]).await.unwrap();
    let hidden = Person { show_presence: false, last_seen: Some(at(20)) };
    let shown = Person { show_presence: true, last_seen: Some(at(30)) };
    assert_eq!(bed.history().people(&users).await.unwrap(), [hidden, shown, Person::default()]);
    bed.history().prefer(&users[1], false).await.unwrap();
    bed.history().prefer(&users[0], true).await.unwrap();
    bed.crash().await;
    let chosen: Vec<_> = bed.history().people(&users).await.unwrap().iter().map(|p| p.show_presence).collect();
    assert_eq!(chosen, [true, false, true]);
}
