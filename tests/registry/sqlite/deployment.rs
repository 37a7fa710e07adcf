//! A file belongs to one deployment.

use std::fs;

use tower_session_end::registry::{Registry, RegistryError, SqliteRegistry};

use super::support::{Dir, holds, record, take_over_all};

fn open(dir: &Dir, deployment: Option<&str>) -> Result<SqliteRegistry, RegistryError> {
    let builder = SqliteRegistry::builder(dir.file());
    match deployment {
        Some(name) => builder.deployment(name).open(),
        None => builder.open(),
    }
}

#[tokio::test]
async fn a_copied_database_ends_nothing_in_another_deployment() {
    let names = [None, Some("production"), Some("staging"), Some("")];
    for made_for in names {
        let dir = Dir::new();
        let registry = open(&dir, made_for).unwrap();
        registry.apply(holds(&[record("a")])).await.unwrap();
        registry.release_lease().await.unwrap();
        let before = fs::read(dir.file()).unwrap();
        for other in names.into_iter().filter(|other| *other != made_for) {
            let error = open(&dir, other).unwrap_err();
            assert!(matches!(error, RegistryError::Invalid(_)), "{error:?}");
            let name =
                |name: Option<&str>| name.map_or("no deployment".to_owned(), |name| format!("deployment {name:?}"));
            let text = error.to_string();
            assert!(text.contains(&name(made_for)) && text.contains(&name(other)), "{text}");
            assert!(text.contains(dir.file().to_str().unwrap()), "{text}");
            // It is not damage.
            let builder = SqliteRegistry::builder(dir.file()).set_aside_damaged(true);
            match other {
                Some(name) => builder.deployment(name).open().unwrap_err(),
                None => builder.open().unwrap_err(),
            };
        }
        assert!(before == fs::read(dir.file()).unwrap(), "it is left as it is");
        assert_eq!(take_over_all(&open(&dir, made_for).unwrap()).await.len(), 1);
    }
}

#[cfg(unix)]
#[tokio::test]
async fn a_file_that_is_made_anew_has_the_name_too() {
    let dir = Dir::new();
    let registry = open(&dir, Some("production")).unwrap();
    for of_it in ["", "-wal", "-shm"] {
        fs::remove_file(dir.path().join(format!("sessions.db{of_it}"))).unwrap();
    }
    assert!(matches!(registry.heartbeat().await, Err(RegistryError::DataLost)));
    assert!(open(&dir, None).is_err());
    open(&dir, Some("production")).unwrap();
}
