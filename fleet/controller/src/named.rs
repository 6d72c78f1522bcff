//! States and their names: an enumeration lists both once, for database, API, page and command line.

/// Name of a value.
pub(crate) fn name<T: Copy + PartialEq>(all: &[(T, &'static str)], value: T) -> &'static str {
    let found = all.iter().find(|(known, _)| *known == value);
    found.map_or("unknown", |(_, name)| name)
}

/// The value of that name.
pub(crate) fn named<T: Copy>(all: &[(T, &'static str)], name: &str) -> Option<T> {
    all.iter().find(|(_, known)| *known == name).map(|(value, _)| *value)
}
