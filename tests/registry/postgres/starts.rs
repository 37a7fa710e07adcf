//! The first use of a schema: migrations, rights, and what is refused.

use tower_session_end::registry::{PostgresRegistry, Registry, RegistryError};

use super::support::{PostgresServer, builder, claim_orphans, hold, holder, new_schema, one, pool, record, shared};

/// The text of an error that waiting does not help.
#[track_caller]
fn invalid(result: Result<PostgresRegistry, RegistryError>) -> String {
    match result {
        Err(RegistryError::Invalid(error)) => error.to_string(),
        other => panic!("expected `Invalid`, but got {other:?}"),
    }
}

fn user(server: &PostgresServer, name: &str) -> String {
    server.ask(&format!("CREATE USER {name}"));
    server.url_of(name)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_processes_create_the_schema_at_once() {
    let Some(server) = shared() else { return };
    for _ in 0..3 {
        let schema = new_schema();
        let all: Vec<_> = (0..8)
            .map(|_| {
                let builder = builder(&server.url(), &schema);
                tokio::spawn(builder.connect())
            })
            .collect();
        let mut registries = Vec::new();
        for one in all {
            registries.push(one.await.unwrap().unwrap());
        }
        assert_eq!(server.ask(&format!("SELECT version FROM \"{schema}\".migrations")), "1");
        assert_eq!(server.ask(&format!("SELECT count(*) FROM \"{schema}\".holders")), "8");
        assert_eq!(server.ask(&format!("SELECT count(*) FROM \"{schema}\".store")), "1");
        for registry in registries {
            registry.heartbeat().await.unwrap();
            registry.release_lease().await.unwrap();
        }
        assert_eq!(server.ask(&format!("SELECT count(*) FROM \"{schema}\".holders")), "0");
    }
}

#[tokio::test]
async fn a_user_without_rights_is_told_at_the_start() {
    let Some(server) = shared() else { return };
    let (schema, url) = (new_schema(), user(server, "without_rights"));
    let text = invalid(builder(&url, &schema).connect().await);
    assert!(text.contains(&schema) && text.contains("permission denied"), "{text}");
    // The schema exists, with tables that the user may not read.
    let owner = holder(server, &schema).await;
    let text = invalid(builder(&url, &schema).connect().await);
    assert!(text.contains(&schema) && text.contains("permission denied"), "{text}");
    // Calls of a lazy registry say the same.
    let text = invalid(builder(&url, &schema).lazy().heartbeat().await.map(|_| unreachable!()));
    assert!(text.contains("permission denied"), "{text}");
    owner.release_lease().await.unwrap();
}

#[tokio::test]
async fn a_user_who_may_not_create_schemas_uses_one_that_exists() {
    let Some(server) = shared() else { return };
    let (schema, url) = (new_schema(), user(server, "of_one_schema"));
    server.ask(&format!("CREATE SCHEMA \"{schema}\"; GRANT ALL ON SCHEMA \"{schema}\" TO of_one_schema"));
    let registry = builder(&url, &schema).connect().await.unwrap();
    one(&registry, hold(&record("a"))).await;
    registry.release_lease().await.unwrap();
}

#[tokio::test]
async fn a_schema_of_a_newer_version_is_refused() {
    let Some(server) = shared() else { return };
    let schema = new_schema();
    holder(server, &schema).await.release_lease().await.unwrap();
    server.ask(&format!("INSERT INTO \"{schema}\".migrations (version) VALUES (99)"));
    let text = invalid(builder(&server.url(), &schema).connect().await);
    assert!(text.contains(&schema) && text.contains("99"), "{text}");
}

#[tokio::test]
async fn a_schema_of_another_deployment_is_refused() {
    let Some(server) = shared() else { return };
    let schema = new_schema();
    let named = |name: &str| builder(&server.url(), &schema).deployment(name).connect();
    let production = named("production").await.unwrap();
    one(&production, hold(&record("a"))).await;
    production.release_lease().await.unwrap();
    for result in [named("staging").await, builder(&server.url(), &schema).connect().await] {
        let text = invalid(result);
        assert!(text.contains("production"), "{text}");
    }
    let operator = builder(&server.url(), &schema).deployment("staging").lazy();
    assert!(matches!(operator.redeliver_all().await, Err(RegistryError::Invalid(_))));
    let production = named("production").await.unwrap();
    assert_eq!(claim_orphans(&production).await.len(), 1);
}

#[tokio::test]
async fn a_replica_is_refused_at_the_start() {
    let Some(server) = shared() else { return };
    let url = user(server, "of_a_replica");
    server.ask("ALTER USER of_a_replica SET default_transaction_read_only = on");
    let text = invalid(builder(&url, &new_schema()).connect().await);
    assert!(text.contains("read-only") && text.contains("primary"), "{text}");
    // Also where the tables exist.
    let schema = new_schema();
    let owner = holder(server, &schema).await;
    server.ask(&format!(
        "GRANT ALL ON SCHEMA \"{schema}\" TO of_a_replica; GRANT ALL ON ALL TABLES IN SCHEMA \"{schema}\" TO of_a_replica"
    ));
    let text = invalid(builder(&url, &schema).connect().await);
    assert!(text.contains("read-only") && text.contains("primary"), "{text}");
    owner.release_lease().await.unwrap();
}

#[tokio::test]
async fn a_database_in_another_encoding_is_refused() {
    let Some(server) = shared() else { return };
    server.ask("CREATE DATABASE latin ENCODING LATIN1 TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'");
    let url = server.url().replace("/postgres", "/latin").replace("//latin", "//postgres");
    let text = invalid(builder(&url, "session_end").connect().await);
    assert!(text.contains("LATIN1") && text.contains("UTF8"), "{text}");
}

#[tokio::test]
async fn wrong_settings_are_refused() {
    let Some(server) = shared() else { return };
    let with = || PostgresRegistry::builder(pool(&server.url()));
    let long = "s".repeat(64);
    for builder in [
        with().schema(""),
        with().schema(&long),
        with().schema("a\0"),
        with().deployment(""),
        with().lease(std::time::Duration::from_millis(99)),
        with().lease(std::time::Duration::from_secs(86_401)),
    ] {
        invalid(builder.connect().await);
    }
}

#[tokio::test]
async fn any_name_of_a_schema_works() {
    let Some(server) = shared() else { return };
    for schema in ["Upper \"quoted\" 'name'; DROP TABLE x --", "{s}", "$1", &"s".repeat(63)] {
        let registry = builder(&server.url(), schema).connect().await.unwrap();
        let record = record("a");
        one(&registry, hold(&record)).await;
        registry.heartbeat().await.unwrap();
        assert!(registry.claim_orphans(1).await.unwrap().is_empty());
        registry.release_lease().await.unwrap();
        let quoted = schema.replace('"', "\"\"");
        assert_eq!(server.ask(&format!("SELECT id FROM \"{quoted}\".ending_sessions")), "");
    }
}
