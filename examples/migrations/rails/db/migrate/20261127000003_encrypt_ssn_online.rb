# Encrypt the personnummer while others write. The procedure commits: no
# transaction around it, and nothing beside it. If it is interrupted, migrate
# again.
class EncryptSsnOnline < ActiveRecord::Migration[6.1]
  disable_ddl_transaction!

  def up
    execute "CALL nomp_crypt.encrypt_column_online('pupils', 'ssn', 'school', searchable => true)"
  end

  def down
    execute "SELECT nomp_crypt.decrypt_column('pupils', 'ssn')"
  end
end
