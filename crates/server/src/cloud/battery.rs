//! How full the battery is, where the system tells (Linux).

use std::path::Path;

/// Charge from 0 to 1 while the device runs on its battery; none on mains, or where it is not known.
pub(super) fn charge() -> Option<f32> {
    charge_of(Path::new("/sys/class/power_supply"))
}

fn charge_of(supplies: &Path) -> Option<f32> {
    let read = |path: &Path| Some(std::fs::read_to_string(path).ok()?.trim().to_owned());
    std::fs::read_dir(supplies)
        .ok()?
        .flatten()
        .find_map(|entry| {
            let path = entry.path();
            let is_battery = read(&path.join("type"))? == "Battery";
            // The battery of a mouse says nothing about the device.
            let is_own = read(&path.join("scope")).is_none_or(|scope| scope != "Device");
            let is_used = read(&path.join("status"))? == "Discharging";
            let percent: f32 = read(&path.join("capacity"))?.parse().ok()?;
            (is_battery && is_own && is_used).then_some(percent / 100.0)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_own_battery_that_is_being_used_counts() {
        let folder = tempfile::tempdir().unwrap();
        let supply = |name: &str, files: &[(&str, &str)]| {
            let path = folder.path().join(name);
            std::fs::create_dir(&path).unwrap();
            for (file, text) in files {
                std::fs::write(path.join(file), format!("{text}\n")).unwrap();
            }
        };
        supply("mains", &[("type", "Mains"), ("online", "0")]);
        supply(
            "mouse",
            &[
                ("type", "Battery"),
                ("scope", "Device"),
                ("status", "Discharging"),
                ("capacity", "3"),
            ],
        );
        assert_eq!(charge_of(folder.path()), None);
        supply(
            "own",
            &[
                ("type", "Battery"),
                ("status", "Discharging"),
                ("capacity", "42"),
            ],
        );
        assert_eq!(charge_of(folder.path()), Some(0.42));
        assert_eq!(charge_of(&folder.path().join("none")), None);
    }
}
