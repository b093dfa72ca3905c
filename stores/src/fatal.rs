//! Why nothing can be written any more: said once, by whoever is first.

use tokio::sync::watch;

/// Says why, unless something was said before.
pub(crate) fn tell(told: &watch::Sender<Option<String>>, why: &str) {
    told.send_if_modified(|told| {
        let first = told.is_none();
        told.get_or_insert_with(|| why.to_owned());
        first
    });
}

/// Passes on what is said, once it is.
pub(crate) async fn pass_on(mut source: watch::Receiver<Option<String>>, to: watch::Sender<Option<String>>) {
    // One that is closed without a word has nothing to say.
    if let Ok(why) = source.wait_for(Option::is_some).await
        && let Some(why) = why.as_deref()
    {
        tell(&to, why);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_word_stands_and_silence_is_none() {
        let ((first, heard), (second, other)) = (watch::channel(None), watch::channel(None));
        let (to, told) = watch::channel(None);
        let (_, silent) = watch::channel(None);
        tell(&first, "the disk");
        tell(&first, "its echo");
        tell(&second, "the recorder");
        pass_on(silent, to.clone()).await;
        assert_eq!(*told.borrow(), None);
        pass_on(heard, to.clone()).await;
        pass_on(other, to).await;
        assert_eq!(told.borrow().as_deref(), Some("the disk"));
    }
}
