#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# ft-cert - the CA and the host certificates of ft's TLS connections. See ft-cert(8).
set -eu
umask 077
PATH=$PATH:/usr/sbin:/sbin

default_dir=/etc/ft/ca
host_days=730
ca_days=7300

usage() {
	cat <<-END
	usage: ft-cert ca [DIR]                  make a CA in DIR ($default_dir)
	       ft-cert host NAME [DIR]           make key and certificate for host NAME, signed by that CA
	       ft-cert renew NAME [DIR]          make a new certificate for NAME's present key
	       ft-cert show [FILE|DIR]           say what certificates there are, and what is wrong with them
	options: --days N   how long it is valid (CA $ca_days, host $host_days)
	         --force    replace what is there
	         --help, --version
	Install on host NAME, in /etc/ft/tls: ca.pem, NAME.pem as cert.pem, NAME.key as key.pem (mode 0600).
	END
}

die() {
	echo "ft-cert: $*" >&2
	exit 1
}

bad_usage() {
	echo "ft-cert: $*" >&2
	usage >&2
	exit 2
}

# The same names that ft takes for hosts and guests.
check_name() {
	case $1 in
	'' | [!A-Za-z0-9]* | *[!A-Za-z0-9._-]*) die "'$1' is no host name: letters, digits, '.', '_' and '-', a letter or digit first" ;;
	esac
	[ ${#1} -le 63 ] || die "'$1' is too long for a host name: at most 63 characters"
}

refuse_to_replace() {
	[ "$force" = no ] || return 0
	for file in "$@"; do
		[ ! -e "$file" ] || die "$file exists - use --force to replace it, which makes what was made with it useless"
	done
}

# Work in a directory beside the target, so that what appears there is whole, or not there at all.
make_workdir() {
	mkdir -p "$dir" || die "cannot make directory $dir"
	work=$(mktemp -d "$dir/.ft-cert.XXXXXX") || die "cannot write to $dir"
	trap 'rm -rf "$work"' EXIT
	trap 'exit 130' INT TERM HUP
}

run_openssl() {
	openssl "$@" >"$work/log" 2>&1 || {
		sed 's/^/ft-cert: openssl: /' "$work/log" >&2
		die "openssl $1 failed"
	}
}

make_key() {
	run_openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1"
}

# sign COMMON-NAME DAYS KEY OUT EXTENSION-LINES [openssl arguments]
sign() {
	cn=$1 valid=$2 key=$3 out=$4 extensions=$5
	shift 5
	printf '[req]\nprompt = no\ndistinguished_name = dn\nx509_extensions = ext\n[dn]\nO = ft\nCN = %s\n[ext]\n%s\n' \
		"$cn" "$extensions" >"$work/config"
	# A serial number is positive: its first digit stays below 8.
	run_openssl req -new -x509 -config "$work/config" -key "$key" -days "$valid" -out "$out" \
		-set_serial "0x1$(openssl rand -hex 15)" "$@"
	chmod 644 "$out"
}

need_ca() {
	if [ ! -f "$dir/ca.pem" ] || [ ! -f "$dir/ca.key" ]; then
		die "there is no CA in $dir - make one with 'ft-cert ca $dir', or name the directory it is in"
	fi
	openssl x509 -checkend 0 -noout -in "$dir/ca.pem" >/dev/null 2>&1 ||
		die "the CA in $dir has expired or is damaged - make a new one with 'ft-cert ca --force $dir', and new certificates"
}

valid_until() {
	openssl x509 -noout -enddate -in "$1" | sed 's/^notAfter=//'
}

make_ca() {
	refuse_to_replace "$dir/ca.key" "$dir/ca.pem"
	make_workdir
	make_key "$work/ca.key"
	# Each CA has a name of its own, so that a certificate of another one is told apart by name.
	sign "ft CA $(openssl rand -hex 4)" "${days:-$ca_days}" "$work/ca.key" "$work/ca.pem" \
		"basicConstraints = critical, CA:TRUE, pathlen:0
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash"
	mv "$work/ca.key" "$work/ca.pem" "$dir/"
	echo "CA in $dir, valid until $(valid_until "$dir/ca.pem")"
	echo "Whoever has $dir/ca.key can be any host: keep it off the hosts if you can. Next: ft-cert host NAME $dir"
}

sign_host() {
	sign "$name" "${days:-$host_days}" "$1" "$work/$name.pem" \
		"basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth, clientAuth
subjectAltName = DNS:$name
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid" -CA "$dir/ca.pem" -CAkey "$dir/ca.key"
	openssl verify -CAfile "$dir/ca.pem" "$work/$name.pem" >"$work/log" 2>&1 ||
		die "$dir/ca.key does not belong to $dir/ca.pem - restore the pair, or make a new CA"
}

make_host() {
	need_ca
	refuse_to_replace "$dir/$name.key" "$dir/$name.pem"
	make_workdir
	make_key "$work/$name.key"
	sign_host "$work/$name.key"
	mv "$work/$name.key" "$work/$name.pem" "$dir/"
	cat <<-END
	$dir/$name.pem, valid until $(valid_until "$dir/$name.pem")
	On $name, in /etc/ft/tls: ca.pem, $name.pem as cert.pem, $name.key as key.pem (mode 0600).
	END
}

renew_host() {
	need_ca
	[ -f "$dir/$name.key" ] || die "there is no $dir/$name.key to renew a certificate for - make both with 'ft-cert host $name $dir'"
	make_workdir
	sign_host "$dir/$name.key"
	mv "$work/$name.pem" "$dir/"
	echo "$dir/$name.pem, valid until $(valid_until "$dir/$name.pem")"
	echo "Copy it to $name as /etc/ft/tls/cert.pem: the next connection uses it, nothing needs a restart."
}

key_of() {
	case $1 in
	*/cert.pem) echo "${1%cert.pem}key.pem" ;;
	*) echo "${1%.pem}.key" ;;
	esac
}

show_one() {
	file=$1
	openssl x509 -noout -in "$file" 2>/dev/null || die "$file is no certificate in PEM form"
	echo "$file"
	openssl x509 -noout -subject -issuer -startdate -enddate -in "$file" | sed 's/^/    /'
	openssl x509 -noout -ext subjectAltName,extendedKeyUsage -in "$file" 2>/dev/null | sed -n 's/^ */    /p' | grep -E 'DNS:|TLS' || :
	openssl x509 -noout -checkend 0 -in "$file" >/dev/null || problem "$file has expired - 'ft-cert renew NAME'"
	openssl x509 -noout -checkend 2592000 -in "$file" >/dev/null || echo "    expires within 30 days: 'ft-cert renew NAME'"
	ca=${file%/*}/ca.pem
	if [ -f "$ca" ] && [ "$ca" != "$file" ]; then
		openssl verify -no_check_time -CAfile "$ca" "$file" >/dev/null 2>&1 || problem "$file is not signed by $ca"
	fi
	show_key "$(key_of "$file")"
}

show_key() {
	[ -f "$1" ] || return 0
	[ -r "$1" ] || { echo "    $1 cannot be read by this user: not checked"; return 0; }
	case $(stat -c %a "$1") in
	*00) ;;
	*) problem "$1 can be read by others - chmod 600 $1" ;;
	esac
	[ "$(openssl pkey -pubout -in "$1" 2>/dev/null)" = "$(openssl x509 -noout -pubkey -in "$file")" ] ||
		problem "$1 does not belong to $file - take both from the same 'ft-cert host'"
}

problem() {
	echo "ft-cert: $*" >&2
	problems=yes
}

show() {
	target=${1:-}
	if [ -z "$target" ]; then
		target=/etc/ft/tls
		[ -d $target ] || target=$default_dir
	fi
	problems=no
	if [ -d "$target" ]; then
		set -- "$target"/*.pem
		[ -f "$1" ] || die "there are no certificates in $target"
		for pem in "$@"; do
			case $pem in
			*/key.pem) ;;
			*) show_one "$pem" ;;
			esac
		done
	elif [ -f "$target" ]; then
		case $target in */*) ;; *) target=./$target ;; esac
		show_one "$target"
	else
		die "there is no $target"
	fi
	[ $problems = no ]
}

command -v openssl >/dev/null || die "the openssl program is missing - install the package openssl"
force=no days='' words=''
while [ $# -gt 0 ]; do
	case $1 in
	--force) force=yes ;;
	--days=*) days=${1#--days=} ;;
	--days)
		[ $# -ge 2 ] || bad_usage "--days wants a number of days"
		days=$2
		shift
		;;
	-h | --help) usage; exit 0 ;;
	-V | --version) echo "ft-cert @VERSION@"; exit 0 ;;
	-*) bad_usage "no option $1" ;;
	*[!A-Za-z0-9._/@%+=:,-]*) die "'$1': no blanks or special characters in names and directories" ;;
	*) words="$words $1" ;;
	esac
	shift
done
# shellcheck disable=SC2086 # no word holds a blank
set -- $words
case $days in
*[!0-9]* | 0*) bad_usage "--days wants a number of days, not '$days'" ;;
esac

[ $# -ge 1 ] || bad_usage "what shall it do?"
command=$1
shift
case $command in
ca)
	[ $# -le 1 ] || bad_usage "too many words after 'ca'"
	dir=${1:-$default_dir}
	make_ca
	;;
host | renew)
	[ $# -ge 1 ] || bad_usage "$command wants the name of a host"
	[ $# -le 2 ] || bad_usage "too many words after '$command'"
	name=$1 dir=${2:-$default_dir}
	check_name "$name"
	case $name in ca) die "'ca' is taken by the CA's own files: a host needs another name" ;; esac
	if [ "$command" = host ]; then make_host; else renew_host; fi
	;;
show)
	[ $# -le 1 ] || bad_usage "too many words after 'show'"
	show "$@"
	;;
*) bad_usage "no command '$command'" ;;
esac
