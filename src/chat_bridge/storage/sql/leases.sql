-- name: take_leases
-- Take or renew leases: those that are ours, nobody's, or that their owner has let run out. One that another process is
-- just taking is waited for, in the order of names.
insert into leases as l (name, owner, lease_until)
select name, $2, clock_timestamp() + $3::interval from unnest($1::text[]) as i (name) order by name
on conflict (name) do update set owner = excluded.owner, lease_until = excluded.lease_until
where l.owner = excluded.owner or l.lease_until < clock_timestamp()
returning l.name;

-- name: release_lease
-- Give a lease back, so that another process need not wait until it runs out.
delete from leases where name = $1 and owner = $2 returning name;
