# Sourced: one readable line on the console for each step of the boot.
stage() {
    read -r uptime _ < /proc/uptime
    echo "moorage: boot [$uptime] $*" > /dev/console
}
