//! The macro that turns rules into tests.

/// Makes one test of each rule of a suite: `rules!(suite, adapter, make; rule, rule)`.
#[macro_export]
macro_rules! rules {
    ($suite:ident, $adapter:ident, $make:expr; $($rule:ident),* $(,)?) => {
        mod $adapter {
            #[allow(unused_imports)]
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $rule() {
                    $crate::conformance::$suite::$rule($make).await;
                }
            )*
        }
    };
}
