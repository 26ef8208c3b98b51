# Runs as root inside the new tree, with no network.
useradd --create-home --uid 1000 --shell /bin/bash user
chmod 0440 /etc/sudoers.d/roost
install -d -o user -g user -m 0755 /workspace

cat >>/etc/bash.bashrc <<'EOF'

# A machine can be put to sleep at any moment: history goes to its file with every command.
shopt -s histappend
PROMPT_COMMAND='history -a'
EOF

# gVisor puts a tmpfs over an empty /tmp, and what is written there would not be on the disk.
echo 'Keeps /tmp from being empty, so that it stays on the disk.' >/tmp/.keep
chmod 0444 /tmp/.keep
