# Prints what the kernel has, a line of JSON.
state=$(sed 's/.*: //' /sys/class/infiniband/rxe0/ports/1/state)
max_mr=$(/bin/ibv_devinfo -v -d rxe0 | sed -n 's/.*max_mr:[[:space:]]*//p')
echo "LAB {\"kernel\":\"$(uname -r)\",\"device\":\"rxe0\",\"port\":\"$state\",\"max_mr\":${max_mr:-0},\"up_s\":$(cut -d' ' -f1 /proc/uptime)}"
poweroff -f
