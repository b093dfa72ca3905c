//! What is wrong with an address, a login or a server is said in a sentence that tells what to do.

use super::*;
use stores::OpenError;

async fn refusal(address: &str) -> OpenError {
    let address = Address::parse(address).unwrap();
    Redis::open(&address, Arc::new(SystemClock::new())).await.map(drop).expect_err("it was to be refused")
}

#[tokio::test]
async fn tls_and_a_password_work_and_their_absence_is_told() {
    let safe = Nodes::start("redis", &["--tls", "--password", "s3cret"]).await;
    let (hosts, ca) = (safe.hosts(), safe.folder.join("ca.pem"));
    let ca = ca.to_str().unwrap();
    let redis = open(&format!("rediss://:s3cret@{hosts}/?ca={ca}")).await;
    redis.check().await.unwrap();
    // Pub/sub goes the same way.
    let backplane = RedisBackplane::open(redis, 5_000).await;
    let nobody = "nobody".parse().unwrap();
    backplane.supersede(&nobody, &"acme/business:sara".parse().unwrap(), SessionId(uuid::Uuid::nil())).await.unwrap();
    let table = [
        (format!("rediss://:wrong@{hosts}/?ca={ca}"), false, "USER:PASSWORD"),
        (format!("rediss://{hosts}/?ca={ca}"), false, "USER:PASSWORD"),
        (format!("redis://:s3cret@{hosts}/"), true, "stores.presence"),
        (format!("rediss://:s3cret@{hosts}/"), true, "TLS"),
    ];
    for (address, may_pass, word) in table {
        let why = refusal(&address).await;
        let said = why.to_string();
        assert!(said.contains(word) && why.may_pass() == may_pass, "{address}: {said}");
        assert!(!said.contains("s3cret") && !said.contains("wrong"), "no password in {said}");
    }
    safe.stop().await;
}

#[tokio::test]
async fn a_server_that_is_not_there_may_still_come_and_one_that_is_no_cluster_will_not() {
    let why = refusal("redis://127.0.0.1:1").await;
    assert!(why.may_pass() && why.to_string().contains("127.0.0.1:1"), "{why}");
    let why = refusal(&format!("redis-cluster://{}/", shared().await.hosts())).await;
    assert!(!why.may_pass() && why.to_string().contains("redis://"), "{why}");
}
