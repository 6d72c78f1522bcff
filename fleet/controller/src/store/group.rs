//! Labels, groups, and the devices that a selector means.

use std::collections::BTreeMap;

use offramp_proto::DeviceId;

use super::audit::log_in_txn;
use super::sql::{Builder, FromRow, Row, Transaction, query, query_as, query_scalar};
use super::{Store, StoreError, Task as _, int, uint};
use crate::overview::SILENT_AFTER;
use crate::selector::{Fact, Key, MOST_LABELS, Selector, Term};

/// Labels by key.
pub(crate) type Labels = BTreeMap<String, String>;

/// A selector that has a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Group {
    pub(crate) name: String,
    pub(crate) selector: String,
    pub(crate) changed_at: u64,
    pub(crate) changed_by: String,
}

impl FromRow for Group {
    fn from_row(row: &Row) -> Result<Self, sqlx::Error> {
        Ok(Self {
            name: row.try_get("name")?,
            selector: row.try_get("selector")?,
            changed_at: uint(row.try_get("changed_at")?),
            changed_by: row.try_get("changed_by")?,
        })
    }
}

/// What came of labels that were given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Labelled {
    Done,
    /// Nothing has changed: this device would have too many.
    Many(DeviceId),
}

/// A selector names a group that there is not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UnknownGroup(pub(crate) String);

/// Groups that a selector speaks of, by name.
type Groups = BTreeMap<String, Selector>;

/// A selector with the groups that it speaks of. The default means every device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Selection {
    selector: Selector,
    groups: Groups,
}

impl Store {
    /// Gives labels to devices, or takes them away where there is no value.
    pub(crate) async fn label(
        &self,
        devices: Vec<DeviceId>,
        labels: BTreeMap<String, Option<String>>,
        who: String,
        now: u64,
    ) -> Result<Labelled, StoreError> {
        self.write(move |connection| {
            Box::pin(async move { label_in_txn(connection, &devices, &labels, &who, now).await })
        })
        .await
    }

    /// The labels of some devices, by device.
    pub(crate) async fn label_list(&self, devices: &[&str]) -> Result<BTreeMap<String, Labels>, StoreError> {
        let mut query = Builder::new(&self.readers, "SELECT device, key, value FROM labels WHERE device IN ");
        query.push_list(devices.iter().copied());
        let rows: Vec<(String, String, String)> = query
            .build()
            .rows()
            .fetch_all(&self.readers)
            .await
            .task("list labels")?;
        let mut labels = BTreeMap::<String, Labels>::new();
        for (device, key, value) in rows {
            labels.entry(device).or_default().insert(key, value);
        }
        Ok(labels)
    }

    /// Gives a selector a name, or another one to that name.
    pub(crate) async fn group_set(
        &self,
        name: String,
        selector: Selector,
        who: String,
        now: u64,
    ) -> Result<(), StoreError> {
        self.write(move |connection| {
            Box::pin(async move {
                let text = selector.to_string();
                query(
                    "INSERT INTO device_groups (name, selector, changed_at, changed_by) VALUES ($1, $2, $3, $4) \
                     ON CONFLICT (name) DO UPDATE SET selector = excluded.selector, changed_at = excluded.changed_at, \
                     changed_by = excluded.changed_by",
                )
                .bind(&name)
                .bind(&text)
                .bind(int(now))
                .bind(&who)
                .execute(&mut *connection)
                .await
                .task("keep a group")?;
                log_in_txn(connection, now, &who, "group.set", &format!("group {name}"), &text).await
            })
        })
        .await
    }

    /// Forgets a group. Gives whether there was one.
    pub(crate) async fn group_remove(&self, name: String, who: String, now: u64) -> Result<bool, StoreError> {
        self.write(move |connection| {
            Box::pin(async move {
                let gone = query("DELETE FROM device_groups WHERE name = $1")
                    .bind(&name)
                    .execute(&mut *connection)
                    .await
                    .task("forget a group")?;
                if gone > 0 {
                    log_in_txn(connection, now, &who, "group.remove", &format!("group {name}"), "").await?;
                }
                Ok(gone > 0)
            })
        })
        .await
    }

    /// All groups, by name.
    pub(crate) async fn group_list(&self) -> Result<Vec<Group>, StoreError> {
        query_as("SELECT name, selector, changed_at, changed_by FROM device_groups ORDER BY name")
            .fetch_all(&self.readers)
            .await
            .task("list groups")
    }

    /// Looks up the groups that a selector speaks of. Those that are part of a group mean nothing: a group names no other.
    pub(crate) async fn resolve(&self, selector: Selector) -> Result<Result<Selection, UnknownGroup>, StoreError> {
        let mut groups = Groups::new();
        for name in selector.groups() {
            let text: Option<String> = query_scalar("SELECT selector FROM device_groups WHERE name = $1")
                .bind(name)
                .fetch_optional(&self.readers)
                .await
                .task("read a group")?;
            match text.and_then(|text| text.parse().ok()) {
                Some(selector) => groups.insert(name.to_owned(), selector),
                None => return Ok(Err(UnknownGroup(name.to_owned()))),
            };
        }
        Ok(Ok(Selection { selector, groups }))
    }

    /// How many devices are meant.
    pub(crate) async fn count(&self, selection: &Selection, now: u64) -> Result<u64, StoreError> {
        let mut query = Builder::new(&self.readers, "SELECT count(*) FROM devices d WHERE 1 = 1");
        push_terms(&mut query, &selection.selector, &selection.groups, now);
        let count: i64 = query
            .build()
            .scalar()
            .fetch_one(&self.readers)
            .await
            .task("count devices")?;
        Ok(uint(count))
    }

    /// The names of at most `limit` devices that are meant, in order, from the one after `after` on.
    pub(crate) async fn select(
        &self,
        selection: &Selection,
        after: &str,
        limit: u32,
        now: u64,
    ) -> Result<Vec<String>, StoreError> {
        let mut query = Builder::new(&self.readers, "SELECT d.device FROM devices d WHERE d.device > ");
        query.push_bind(after);
        push_terms(&mut query, &selection.selector, &selection.groups, now);
        query.push(" ORDER BY d.device LIMIT ").push_bind(limit);
        query
            .build()
            .scalar()
            .fetch_all(&self.readers)
            .await
            .task("find devices")
    }
}

fn push_terms<'q>(query: &mut Builder<'q>, selector: &'q Selector, groups: &'q Groups, now: u64) {
    for term in selector.terms() {
        query.push(if term.not { " AND NOT (" } else { " AND (" });
        push_term(query, term, groups, now);
        query.push(")");
    }
}

fn push_term<'q>(query: &mut Builder<'q>, term: &'q Term, groups: &'q Groups, now: u64) {
    let fact = match &term.key {
        Key::Label(key) => {
            query.push("EXISTS (SELECT 1 FROM labels l WHERE l.device = d.device AND l.key = ");
            query.push_bind(key.as_str());
            if !term.values.is_empty() {
                query.push(" AND (");
                push_values(query, "l.value", &term.values);
                query.push(")");
            }
            query.push(")");
            return;
        }
        Key::Fact(fact) => fact,
    };
    match fact {
        Fact::Device => push_values(query, "d.device", &term.values),
        Fact::Model => push_values(query, "coalesce(d.model_name, '')", &term.values),
        Fact::ModelVersion => push_values(query, "coalesce(CAST(d.model_version AS TEXT), '')", &term.values),
        Fact::Agent => push_values(query, "coalesce(d.agent, '')", &term.values),
        Fact::Policy => push_values(query, "coalesce(d.reported_policy, '')", &term.values),
        Fact::PolicyVersion => push_values(query, "coalesce(CAST(d.reported_version AS TEXT), '')", &term.values),
        Fact::Capability => {
            for (number, value) in term.values.iter().enumerate() {
                query.push(if number > 0 { " OR " } else { "" });
                // An item of a JSON list of names.
                push_match(query, "coalesce(d.capabilities, '')", format!("*\"{value}\"*"));
            }
        }
        Fact::State => {
            query.push("CASE WHEN d.quarantined_at IS NOT NULL THEN 'quarantined' WHEN NOT d.alive THEN 'gone' WHEN d.last_seen < ");
            query.push_bind(int(now));
            // As in the overview: silent for five minutes, or for three of its windows.
            let windows = "coalesce((SELECT 3 * (window_end - window_start) FROM summaries s WHERE s.device = d.device \
                           ORDER BY sequence DESC LIMIT 1), 0)";
            query.push_either(" - max(", " - greatest(");
            query
                .push_bind(int(SILENT_AFTER))
                .push(", ")
                .push(windows)
                .push(") THEN 'silent' ELSE 'alive' END IN ");
            query.push_list(term.values.iter().map(String::as_str));
        }
        Fact::Group => {
            query.push("1 = 1");
            if let Some(selector) = term.values.first().and_then(|name| groups.get(name)) {
                push_terms(query, selector, groups, now);
            }
        }
    }
}

fn push_values<'q>(query: &mut Builder<'q>, column: &str, values: &'q [String]) {
    for (number, value) in values.iter().enumerate() {
        query.push(if number > 0 { " OR " } else { "" });
        if value.contains('*') {
            push_match(query, column, value.clone());
        } else {
            query.push(column).push(" = ").push_bind(value.as_str());
        }
    }
}

/// A pattern in which only `*` is special: what else either database takes for that is no part of a value, but for `_`.
fn push_match(query: &mut Builder<'_>, column: &str, pattern: String) {
    if query.is_postgres() {
        let pattern = pattern.replace('_', "\\_").replace('*', "%");
        query.push(column).push(" LIKE ").push_bind(pattern);
    } else {
        query.push(column).push(" GLOB ").push_bind(pattern);
    }
}

async fn label_in_txn(
    connection: &mut Transaction,
    devices: &[DeviceId],
    labels: &BTreeMap<String, Option<String>>,
    who: &str,
    now: u64,
) -> Result<Labelled, StoreError> {
    for device in devices {
        if !fits_in_txn(connection, device, labels).await? {
            return Ok(Labelled::Many(device.clone()));
        }
    }
    for device in devices {
        set_in_txn(connection, device, labels).await?;
    }
    let text = labels.iter().map(|(key, value)| match value {
        Some(value) => format!("{key}={value}"),
        None => format!("{key}-"),
    });
    let text = text.collect::<Vec<_>>().join(" ");
    let subject = match devices {
        [device] => format!("device {device}"),
        many => format!("{} devices", many.len()),
    };
    log_in_txn(connection, now, who, "device.label", &subject, &text).await?;
    Ok(Labelled::Done)
}

/// Whether a device would not have too many labels.
pub(super) async fn fits_in_txn(
    connection: &mut Transaction,
    device: &DeviceId,
    labels: &BTreeMap<String, Option<String>>,
) -> Result<bool, StoreError> {
    let keys: Vec<String> = query_scalar("SELECT key FROM labels WHERE device = $1")
        .bind(device.as_str())
        .fetch_all(connection)
        .await
        .task("count labels")?;
    let kept = keys.iter().filter(|key| !labels.contains_key(*key)).count();
    Ok(kept + labels.values().flatten().count() <= MOST_LABELS)
}

/// Gives a device labels, or takes them away.
pub(super) async fn set_in_txn(
    connection: &mut Transaction,
    device: &DeviceId,
    labels: &BTreeMap<String, Option<String>>,
) -> Result<(), StoreError> {
    for (key, value) in labels {
        let query = match value {
            Some(value) => query(
                "INSERT INTO labels (device, key, value) VALUES ($1, $2, $3) \
                 ON CONFLICT (device, key) DO UPDATE SET value = excluded.value",
            )
            .bind(device.as_str())
            .bind(key)
            .bind(value),
            None => query("DELETE FROM labels WHERE device = $1 AND key = $2")
                .bind(device.as_str())
                .bind(key),
        };
        query.execute(&mut *connection).await.task("label a device")?;
    }
    Ok(())
}
