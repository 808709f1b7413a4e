# The table as it was: plain.
class CreatePupils < ActiveRecord::Migration[6.1]
  def change
    create_table :pupils do |t|
      t.text :school, null: false
      t.text :name
      t.text :ssn, index: { unique: true }
    end
  end
end
